"""Runs compared with a baseline, image by image.

The pixels of test image i follow from (seed, condition, i) alone, so runs of one seed see the same
pixels. The interval of a paired difference is narrower than those of the two accuracies, since
images on which both agree do not widen it. Each run is compared with the baseline of its own seed;
the differences of several seeds are averaged for each image (`paired_difference`).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bvit.evaluation.answers import Cell
from bvit.evaluation.rows import COLUMNS, Row, format_cell
from bvit.evaluation.statistics import paired_difference
from bvit.report.comparison import Group, group
from bvit.run import Run

KEEP = "keep"
# Settings that determine which images were tested, and how they were cropped.
SAME = ("data.name", "data.test_split", "data.image_size", "data.resize")
SHOWN = ("condition", "policy", "top1", "difference", "difference_ci95")


@dataclasses.dataclass(frozen=True)
class _Tested:
    """Which images a run classified correctly under one condition and policy: bool [n]."""

    run: Run
    index: np.ndarray
    right: np.ndarray


_Cells = dict[Cell, dict[int, _Tested]]


def baseline_of(runs: Sequence[Run]) -> Group:
    """The runs of the baseline as one group.

    Raises:
      ValueError: they differ in more than their seed.
    """
    groups = group(runs)
    if len(groups) > 1:
        raise ValueError(
            "a baseline's runs must differ in nothing but their seed: "
            f"{', '.join(run.name for run in runs)} differ in {', '.join(groups[0].settings)}; "
            "compare with one of them at a time."
        )
    return groups[0]


def table(groups: Sequence[Group], baseline: Group, policy: str = KEEP) -> list[list[str]]:
    """A line for each group, condition and policy, header first.

    The lines of one condition and policy are adjacent, so that the groups can be compared.

    Args:
      groups: of `comparison.group`.
      baseline: of `baseline_of`.
      policy: of the baseline, which all policies are compared with; its label.

    Raises:
      ValueError: see `rows`.
    """
    titles = {key: title for key, title, _ in COLUMNS if key in SHOWN}
    titles["difference"] = f"vs baseline's {policy}"
    lines = [[*groups[0].shown, *titles.values(), "by seed", "interval over"]]
    found = [(one, row) for one in groups for row in rows(one, baseline, policy)]
    for condition in dict.fromkeys(row["condition"] for _, row in found):
        for tested in dict.fromkeys(row["policy"] for _, row in found):
            for one, row in found:
                if (row["condition"], row["policy"]) == (condition, tested):
                    lines.append([*one.shown.values(), *_cells_of_text(row)])
    return lines


def _cells_of_text(row: Row) -> list[str]:
    seeds = ", ".join(f"{seed}: {100 * value:+.2f}" for seed, value in row["by_seed"].items())
    cells = [format_cell(row, key, form) for key, _, form in COLUMNS if key in SHOWN]
    return [*cells, seeds, f"{row['n']} images"]


def rows(one: Group, baseline: Group, policy: str = KEEP) -> list[Row]:
    """Pairs the answers of the runs of one group with those of the baseline.

    Args:
      one: the runs; a seed that was run twice counts once.
      baseline: of `baseline_of`.
      policy: a label among the baseline's.

    Returns:
      For each "condition" and "policy" (its label) of the runs: "top1", the mean over seeds;
      "difference", that minus the baseline's under `policy`, with its interval over images
      "difference_ci95"; "by_seed", seed → that seed's difference; and "n" images.

    Raises:
      ValueError: a run kept no answers, or the baseline has none for that seed, those images, or
        that condition and policy.
    """
    theirs = _cells(baseline)
    found = []
    for (condition, label), tested in _cells(one).items():
        pairs = {
            seed: (own, _partner(own, theirs, seed, (condition, policy)))
            for seed, own in sorted(tested.items())
        }
        found.append({"condition": condition, "policy": label, **_compare(pairs)})
    return found


def _cells(one: Group) -> _Cells:
    found: _Cells = {}
    for run in one.runs:
        kept = run.answers
        for cell, rank in kept.ranks.items():
            tested = _Tested(run, kept.index, rank == 0)
            found.setdefault(cell, {}).setdefault(run.results["seed"], tested)
    return found


def _partner(own: _Tested, theirs: _Cells, seed: int, cell: Cell) -> _Tested:
    """The baseline's answers to compare those of a run with."""
    seeds = sorted({seed for tested in theirs.values() for seed in tested})
    if seed not in seeds:
        raise ValueError(
            f"{own.run.name} has the seed {seed}, which determines its test blurs, and the "
            f"baseline has {', '.join(map(str, seeds))}: give --against a run of that seed too."
        )
    if seed not in theirs.get(cell, {}):
        known = [" under ".join(cell) for cell, tested in theirs.items() if seed in tested]
        raise ValueError(
            f"the baseline of seed {seed} was not tested on {' under '.join(cell)}, but on "
            f"{', '.join(known)}: choose another --against_policy, or evaluate it again with "
            f"that --config.eval.conditions and --config.eval.policies."
        )
    return theirs[cell][seed]


def _compare(pairs: dict[int, tuple[_Tested, _Tested]]) -> Row:
    first = next(iter(pairs.values()))[0]
    _check_same(first, (one for pair in pairs.values() for one in pair))
    sides = zip(*pairs.values(), strict=True)
    ours, theirs = (np.stack([one.right for one in side]) for side in sides)
    difference, interval = paired_difference(ours, theirs)
    return {
        "top1": float(ours.mean()),
        "difference": difference,
        "difference_ci95": list(interval),
        "by_seed": {
            seed: paired_difference(own.right, other.right)[0]
            for seed, (own, other) in pairs.items()
        },
        "n": len(first.index),
    }


def _check_same(first: _Tested, others: Iterable[_Tested]) -> None:
    """Raises a `ValueError` unless all were tested on the same pixels of the same images."""
    for other in others:
        names = f"{first.run.name} and {other.run.name} were not tested on the same images:"
        for key, value in _tested_data(first.run).items():
            if value != (theirs := _tested_data(other.run)[key]):
                raise ValueError(f"{names} {key} is {value!r} and {theirs!r}.")
        if not np.array_equal(first.index, other.index):
            alone = len(np.setxor1d(first.index, other.index))
            raise ValueError(
                f"{names} {alone} of their {len(first.index)} and {len(other.index)} were tested "
                "by only one of them; evaluate both again on the same data."
            )


def _tested_data(run: Run) -> dict[str, object]:
    folder = Path(run.settings["data.dir"]).name  # its path differs between machines
    return {key: run.settings[key] for key in SAME} | {"data.dir": folder}
