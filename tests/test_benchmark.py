import itertools
import json
import os
import re
import time
import types
import weakref

import numpy as np
import pytest
from absl import app

from bvit.benchmarks import (
    apart,
    corruption_peers,
    gpu_check,
    growth,
    harness,
    images,
    labels,
    pipelines,
    torch_peers,
    training,
)
from bvit.benchmarks.harness import Case, Unavailable, format_rows, measure, measure_groups
from bvit.data.decode import random_resized_crop


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sizes that take no time."""
    for module, name, value in (
        (harness, "CPU_PRODUCT", 8),
        (harness, "CPU_COPY", 8),
        (images, "BATCH", 2),
        (images, "FEW", 2),
        (images, "SIZE", 48),
        (pipelines, "FILES", 12),
        (pipelines, "PICTURES", 8),
        (pipelines, "SIZE", 32),
        (pipelines, "SHAPES", ((75, 100),)),
    ):
        monkeypatch.setattr(module, name, value)


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


def test_a_group_is_let_go_before_the_next_is_measured():
    alive = weakref.WeakValueDictionary()
    seen = []

    class Network:
        def __init__(self, name):
            self.name = name
            alive[name] = self

        def __call__(self):
            seen.append((self.name, set(alive)))
            return 1.0

    def cases():
        for group in "abc":
            yield Case("models", f"{group}1", Network(group), group=group)

    rows = list(itertools.chain(*measure_groups(cases(), repeats=2)))
    assert [row["name"] for row in rows] == ["a1", "b1", "c1"]
    # The next of a generator is made before the last is known to be complete.
    assert seen == [("a", {"a", "b"})] * 3 + [("b", {"b", "c"})] * 3 + [("c", {"c"})] * 3


def test_long_functions_need_no_warming(monkeypatch):
    monkeypatch.setattr(harness, "LONG", 0.01)
    log = []
    measure([Case("image", "slow", sleeper(0.02, log))], repeats=3)
    assert len(log) == 1 + 3  # the first compiles


def test_a_function_may_time_itself():
    (row,) = measure([Case("data", "name", lambda: 0.5, "peer", lambda: 2.0)], repeats=1)
    assert (row["ms"], row["peer_ms"], row["ratio"], row["compile_s"]) == (500, 2000, 0.25, 0)


def test_the_floor_is_the_slower_of_moving_and_computing():
    run = lambda: 1.0  # noqa: E731
    cases = [Case("a", "bytes", run, bytes=1e9), Case("a", "flops", run, bytes=1, flops=1e12)]
    moving, computing = measure([*cases], repeats=1)
    assert (moving["floor"], computing["floor"]) == ("bytes", "FLOPs")
    for row in (moving, computing):
        np.testing.assert_allclose(row["of_floor"], row["floor_ms"] / row["ms"])


def test_a_row_that_cannot_be_run_says_why():
    cases = [Case("models", "net", lambda: 0.1, "timm", None, why="timm is not installed")]
    rows = measure([*cases, Case("growth", "memory", None, values={"mb": 3.0})], repeats=1)
    assert rows[0]["peer_ms"] is rows[0]["ratio"] is rows[1]["ms"] is None
    assert rows[1]["mb"] == 3.0 and json.dumps(rows)
    assert format_rows(rows).endswith("not run: net, beside timm: timm is not installed")


def test_a_library_that_is_missing_or_broken_is_reported(monkeypatch):
    with pytest.raises(Unavailable, match="no_such_library is not installed"):
        torch_peers.load("no_such_library")
    error = RuntimeError("operator does not exist")
    monkeypatch.setattr(
        torch_peers.importlib, "import_module", lambda name: (_ for _ in ()).throw(error)
    )
    with pytest.raises(Unavailable, match="torch can't be imported .operator does not exist"):
        torch_peers.load("torch")


def make_peers(seconds, process):
    def fail():
        raise Unavailable("it has none")

    def crash():
        os._exit(1)

    functions = {"sleep": lambda: time.sleep(seconds), "fail": fail, "crash": crash}
    assert os.getpid() != process
    return apart.Peers(functions, lambda: None, in_bursts=False)


def test_functions_of_another_process_time_themselves_and_say_what_failed():
    sleep, fail = apart.start(["sleep", "fail"], make_peers, 0.01, os.getpid())
    (crash,) = apart.start(["crash"], make_peers, 0.01, os.getpid())
    rows = measure([Case("a", "name", run) for run in (sleep, fail, crash)], repeats=1)
    assert 10 <= rows[0]["ms"] < 1000
    assert [row["why"] for row in rows] == ["", "it has none", "its process ended"]


def test_what_a_process_cannot_make_is_said_at_each_call():
    (sleep,) = apart.start(["sleep"], make_peers, "too few arguments")
    for _ in range(2):
        with pytest.raises(Unavailable, match="missing 1 required positional argument"):
            sleep()


def test_peers_compute_the_same_as_bvit():
    # dm-pix darkens the border, blending is not exact, and some of ImageNet-C's blurs draw.
    drawn = set(corruption_peers.BLURS) - set(corruption_peers.EXACT)
    names = []
    for case in images.cases("cpu"):
        if case.group == "torchvision":  # in another process, which returns no images
            continue
        ours, theirs = np.asarray(case.run()), np.asarray(case.peer_run())
        assert ours.shape == theirs.shape
        if case.peer.startswith(("dm-pix", "8 levels")) or any(
            f"C {n}" in case.name for n in drawn
        ):
            assert np.abs(ours - theirs).mean() < 0.2 * np.abs(ours).mean()
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        names.append(case.name)
    assert len(names) == 15


def test_pipelines_give_the_same_crops(tmp_path):
    assert len(list(pipelines.cases(tmp_path))) == 2
    file = sorted(tmp_path.glob("100x75/train/*/*.jpg"))[0]
    for seed in range(3):
        rng = np.random.default_rng(seed)
        ours = random_resized_crop(file.read_bytes(), rng, size=32, scale=pipelines.SCALE)
        theirs = pipelines.pillow_crop(file, seed)
        assert np.abs(ours.astype(int) - theirs).mean() < 6  # a box against a triangle


def test_each_file_is_labelled(tmp_path, monkeypatch):
    for name, value in (("SIZE", 32), ("BATCH", 4), ("FILES", 6), ("POLICIES", ("keep",))):
        monkeypatch.setattr(labels, name, value)
    begun, begin = [], labels.Predictor.begin
    monkeypatch.setattr(
        labels.Predictor, "begin", lambda *given: begun.append(len(given[1])) or begin(*given)
    )
    (case,) = labels.cases(tmp_path)
    assert "keep" in case.name and case.images == 6
    labels._predictors(sorted(tmp_path.glob("train/*/*.jpg"))[:6]).functions["keep"]()
    assert begun == [4, 2]


def test_pipelines_run(tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines, "WARM", 1)
    monkeypatch.setattr(pipelines, "TIMED", 1)
    case = next(pipelines.cases(tmp_path))
    for run in (case.run, case.peer_run):
        assert 0 < run() < 60


TINY = {"batch_size": 2, "size": 32, "depth": 1, "width": 32, "num_heads": 2}


def test_a_step_goes_on_from_its_own_state_and_counts_the_models_operations():
    step = training.make_step("vit_tiny_patch16_224", policy="drop:2", condition="blur", **TINY)
    run = step.runner()
    first, second = run(), run()
    assert first["loss"] != second["loss"]
    assert not step.state.step.is_deleted()
    keep = training.make_step("vit_tiny_patch16_224", **TINY)
    assert 0 < step.flops() < keep.flops()


class QuickStep(training.Step):
    """Stands in for a training step: takes a hundredth of a second, and 5 MB."""

    state = batch = None

    def __init__(self, *name, batch_size, **options):
        object.__setattr__(self, "batch_size", batch_size)

    def runner(self):
        return lambda: 0.01

    def flops(self):
        return 1e6

    def jitted(self):
        analysis = types.SimpleNamespace(temp_size_in_bytes=5e6)
        compiled = types.SimpleNamespace(memory_analysis=lambda: analysis)
        lowered = types.SimpleNamespace(compile=lambda: compiled)
        return types.SimpleNamespace(lower=lambda state, batch: lowered)


def test_a_section_that_does_not_exist_is_an_error(tmp_path, monkeypatch):
    for flag, value in {"OUT": tmp_path, "ONLY": ["tokns"], "SMOKE": True, "DATA": None}.items():
        monkeypatch.setattr(gpu_check, flag, types.SimpleNamespace(value=value))
    with pytest.raises(app.UsageError, match="--only takes tokens, models, .*: got tokns"):
        gpu_check.main(["gpu_check"])


def test_growth_is_measured_and_drawn(monkeypatch):
    monkeypatch.setattr(growth, "make_step", QuickStep)
    monkeypatch.setattr(growth.jax, "devices", lambda: [None] * 5)
    rows = measure(list(growth.cases("cpu")), repeats=1)
    assert [row["x"] for row in rows if row["axis"] == "devices"] == [1, 2, 4]
    assert [row["x"] for row in rows if row["axis"] == "tokens"][-2:] == [169, 196]
    panels = growth.draw([*rows, {"suite": "image"}]).axes
    assert [len(panel.lines) for panel in panels] == [1, 1, 1, 1, 2]
    np.testing.assert_allclose(panels[0].lines[0].get_ydata()[:3], [100, 200, 400])
    np.testing.assert_allclose(panels[4].lines[1].get_ydata(), 5)
    assert [panel.get_ylabel() for panel in panels] == 4 * ["images/s"] + ["MB"]
    assert "memory with 8 images in a batch, rematerialised" in format_rows(rows)


def test_a_steps_rows_stand_beside_the_step_they_vary(monkeypatch):
    monkeypatch.setattr(training, "make_step", QuickStep)
    monkeypatch.setattr(training, "SIZE", 32)
    monkeypatch.setitem(training.BATCH, "cpu", 2)
    rows = measure(list(training.cases("cpu")), repeats=1)
    peers = ["", "without blur", "the whole step", "keep", "keep", ""]
    assert [row["peer"] for row in rows] == peers
    assert all(row["ratio"] == 1 for row in rows if row["peer"] not in ("", "the whole step"))
    assert rows[2]["ratio"] > 0


def test_memory_is_that_of_the_compiled_step():
    options = {name: TINY[name] for name in ("depth", "width", "num_heads")}
    options |= {"batch_size": 2, "size": 32, "remat": True}
    step = training.make_step("vit_tiny_patch16_224", **options)
    case = growth._memory(2, True, step)
    assert case.run is None and case.values["mb"] > 0 and case.values["remat"]
