"""bvit's hot functions beside their peers: python -m bvit.benchmark --suite=image.

Everything in a suite is measured in one run, the functions taking turns, because machines drift:
read the ratios. Compile time stands in a column of its own, and beside each time the least that its
bytes or operations need at this machine's own pace, measured in the same rounds.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import app, flags
from tqdm import tqdm

from bvit import outputs
from bvit.arguments import EXIT_BAD_INPUT, fail, parse_flags
from bvit.benchmarks import attention, growth, images, labels, networks, pipelines, tokens, training
from bvit.benchmarks.harness import (
    Case,
    Kind,
    Row,
    format_rows,
    machine,
    measure_groups,
    on_accelerator,
)

# Rounds of each suite, unless --repeats says otherwise: what takes seconds is repeated less often.
ROUNDS = {
    "image": 15,
    "attention": 9,
    "tokens": 5,
    "models": 3,
    "train": 3,
    "data": 5,
    "predict": 5,
    "growth": 3,
}

SUITE = flags.DEFINE_enum("suite", "all", ["all", *ROUNDS], "What is measured.")
REPEATS = flags.DEFINE_integer(
    "repeats", None, f"Timed rounds, of which the median counts; by default {ROUNDS}.", 1
)
TINY = flags.DEFINE_bool(
    "tiny", False, "Tries an accelerator's rows with few images, on a CPU too."
)
JSON = flags.DEFINE_string("json", None, "File to write the rows to as well, one object a line.")
PLOT = flags.DEFINE_string("plot", None, "Image file for the curves of the suite growth.")


def suites(folder: Path) -> dict[str, Callable[[Kind], Iterator[Case]]]:
    """The suites by name; what they have to write goes to that folder."""
    return {
        "image": images.cases,
        "attention": attention.cases,
        "tokens": tokens.cases,
        "models": networks.cases,
        "train": training.cases,
        "data": lambda kind: pipelines.cases(folder),
        "predict": lambda kind: labels.cases(folder / "photographs"),
        "growth": growth.cases,
    }


def main(argv: Sequence[str]) -> None:
    """Measures and prints, suite by suite."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}.")
    chosen = list(ROUNDS) if SUITE.value == "all" else [SUITE.value]
    if PLOT.value and "growth" not in chosen:
        raise app.UsageError(f"--plot draws the suite growth: got --suite={SUITE.value}.")
    _check_files()
    print(machine())
    kind = "tiny" if TINY.value else "accelerator" if on_accelerator() else "cpu"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            prepared = tqdm(suites(Path(folder))[name](kind), desc=f"preparing {name}", leave=False)
            for found in measure_groups(prepared, repeats=REPEATS.value or ROUNDS[name]):
                print(format_rows(found), flush=True)
                rows += found
                _write(rows)  # what is measured stays, whatever becomes of the rest
    if PLOT.value:
        outputs.write_figure(Path(PLOT.value), growth.draw(rows), dpi=100)


def _write(rows: Sequence[Row]) -> None:
    if JSON.value:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        outputs.write(Path(JSON.value), text.encode(), _holds_rows)


def _check_files() -> None:
    """Ends the command where it could not write, before it measures anything."""
    try:
        if JSON.value:
            outputs.check(Path(JSON.value), _holds_rows)
        if PLOT.value:
            outputs.check(Path(PLOT.value))
    except (ValueError, OSError) as error:
        fail(str(error), EXIT_BAD_INPUT)


def _holds_rows(path: Path) -> bool:
    """Whether a file holds what --json writes."""
    try:
        first = json.loads(path.read_bytes().partition(b"\n")[0])
    except ValueError:
        return False
    return isinstance(first, dict) and first.keys() >= {"suite", "name", "peer_ms", "floor_ms"}


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
