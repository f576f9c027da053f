import re
import time

import numpy as np

from bvit import benchmark
from bvit.benchmark import Case, format_rows, image_cases, measure


def sleeper(seconds, log):
    def run():
        log.append(seconds)
        time.sleep(seconds)

    return run


def test_functions_take_turns_and_shared_ones_run_once_a_round():
    log = []
    fast, slow, peer = (sleeper(s, log) for s in (0.002, 0.03, 0.01))
    cases = [Case("image", "fast", fast, "peer", peer), Case("image", "slow", slow, "peer", peer)]
    rows = measure(cases, repeats=3)
    once = [0.002, 0.01, 0.03]
    assert log == once + [s for _ in range(3) for s in once for _ in range(2)]
    assert [row["name"] for row in rows] == ["fast", "slow"]
    for row in rows:
        np.testing.assert_allclose(row["ratio"], row["ms"] / row["peer_ms"])
    assert rows[0]["peer_ms"] == rows[1]["peer_ms"]
    assert rows[0]["ms"] < rows[1]["ms"]
    table = format_rows(rows)
    assert re.search(r"\| image \| fast \| \d+\.\d\d", table)
    assert len(table.splitlines()) == 4


def test_peers_compute_the_same_as_bvit(monkeypatch):
    monkeypatch.setattr(benchmark, "BATCH", 2)
    monkeypatch.setattr(benchmark, "SIZE", 48)
    for case in image_cases():
        if "patch_laplacian" in case.name:
            ours, theirs = np.asarray(case.run()), np.asarray(case.peer_run())
            np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, rtol=1e-3)
        else:
            case.run()
            case.peer_run()
