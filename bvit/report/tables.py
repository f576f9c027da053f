"""Groups of runs as tables of text, header first."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bvit.data.imagenet import readable
from bvit.evaluation.answers import Cell
from bvit.evaluation.rows import CALIBRATION, COLUMNS, NOTHING, Row, format_cell, format_value
from bvit.evaluation.statistics import confusion
from bvit.report.comparison import Group, caption
from bvit.run import Run

NOT_RUN = "not run"
# Values of a row that are numbers, and those that are intervals.
NUMBERS = ("tokens", "top1", "top5", "loss", "ece", "difference", "gflops", "images_per_s", "n")
INTERVALS = {"top1": "ci95", "difference": "difference_ci95"}


def overview_lines(groups: Sequence[Group]) -> list[list[str]]:
    """A line for each group: its runs, and all settings that differ."""
    keys = list(groups[0].settings)
    lines = [["runs", *keys, "seeds", "parameters", "what"]]
    for one in groups:
        results = one.runs[0].results
        seeds = dict.fromkeys(str(run.results["seed"]) for run in one.runs)
        lines.append(
            [
                ", ".join(run.name for run in one.runs),
                *(format_value(one.settings[key]) for key in keys),
                ", ".join(seeds),
                f"{results['parameters']:,}",
                caption(one.runs[0]),
            ]
        )
    return lines


def result_lines(
    groups: Sequence[Group], columns: Sequence[tuple[str, str, str]] = COLUMNS
) -> list[list[str]]:
    """A line for each condition, policy and group, in this order, with what was measured.

    Args:
      groups: at least one.
      columns: key, title and format of each, as `rows.COLUMNS`.
    """
    lines = [[*groups[0].shown, *(title for _, title, _ in columns), "interval over"]]
    for condition in _in_order(row["condition"] for one in groups for row in one.rows):
        for policy in _in_order(row["policy"] for one in groups for row in one.rows):
            for one in groups:
                row = _find(one, condition, policy)
                if row is not None:
                    cells = [format_cell(row, key, form) for key, _, form in columns]
                    lines.append([*one.shown.values(), *cells, over([row])])
    return lines


def calibration_lines(groups: Sequence[Group]) -> list[list[str]]:
    """Cross-entropy and calibration; [] if no run has them, as older ones."""
    if all(row["ece"] is None for one in groups for row in one.rows):
        return []
    return result_lines(groups, CALIBRATION)


def class_lines(run: Run, policy: str) -> list[list[str]]:
    """A line for each class: its accuracy under each condition, and what it is confused with most.

    Args:
      run: a finished one.
      policy: its label, of those that the run was tested with.

    Raises:
      ValueError: the run kept no predicted classes, or was not tested with the policy.
    """
    kept, names = run.answers, [readable(name) for name in run.class_names]
    if kept.label is None:
        raise ValueError(
            f"{run.path} kept no predicted classes, as older runs did not: evaluate it again."
        )
    found = {name: one for (name, label), one in kept.predicted.items() if label == policy}
    if not found:
        known = ", ".join(_in_order(label for _, label in kept.predicted))
        raise ValueError(f"{run.path} was not tested with {policy}, but with {known}.")
    shares = {name: confusion(kept.label, one, len(names)) for name, one in found.items()}
    wrong = np.nan_to_num(np.stack(list(shares.values()))).mean(axis=0)
    np.fill_diagonal(wrong, 0)
    counts = np.bincount(kept.label, minlength=len(names))
    lines = [["class", "images", *(f"{name} %" for name in shares), "most often taken for"]]
    for i in np.flatnonzero(counts):
        cells = [f"{100 * one[i, i]:.1f}" for one in shares.values()]
        taken = wrong[i].argmax()
        other = f"{names[taken]} ({100 * wrong[i, taken]:.0f} %)" if wrong[i, taken] else NOTHING
        lines.append([names[i], str(counts[i]), *cells, other])
    return lines


def tidy_lines(
    groups: Sequence[Group], paired: Mapping[Run, Mapping[Cell, Row]]
) -> list[list[Any]]:
    """One line a run, seed, condition and policy, as data frames have it; header first.

    Shares are in [0, 1]; what was not measured is None.

    Args:
      groups: at least one; their settings are columns.
      paired: run → (condition, policy) → its difference from a baseline; empty for none.
    """
    keys = list(groups[0].settings)
    header = ["run", *keys, "seed", "step", "condition", "policy", *NUMBERS]
    header += [f"{name}_{end}" for name in INTERVALS for end in ("low", "high")]
    if paired:
        header += ["vs_baseline", "vs_baseline_low", "vs_baseline_high"]
    lines = [header]
    for one in groups:
        settings = [one.settings[key] for key in keys]
        for run in one.runs:
            for row in run.results["rows"]:
                cells = [run.name, *settings, run.results["seed"], run.results["step"]]
                cells += [row["condition"], row["policy"], *(row[key] for key in NUMBERS)]
                for key in INTERVALS.values():
                    cells += row[key] or (None, None)
                if paired:
                    found = paired[run].get((row["condition"], row["policy"]))
                    cells += (
                        [found["difference"], *found["difference_ci95"]] if found else [None] * 3
                    )
                lines.append(cells)
    return lines


def matrix_lines(groups: Sequence[Group]) -> list[list[str]]:
    """A line for each group and policy, a column for each condition: top-1 with its interval."""
    conditions = _in_order(row["condition"] for one in groups for row in one.rows)
    policies = _in_order(row["policy"] for one in groups for row in one.rows)
    lines = [[*groups[0].shown, "policy", *conditions, "interval over"]]
    for one in groups:
        for policy in policies:
            found = [_find(one, condition, policy) for condition in conditions]
            if any(found):
                cells = map(cell, found)
                lines.append([*one.shown.values(), policy, *cells, over(filter(None, found))])
    return lines


def cell(row: Row | None, metric: str = "top1") -> str:
    """An accuracy in %, with its interval where it has one."""
    if row is None:
        return NOT_RUN
    text = f"{100 * row[metric]:.2f}"
    if metric != "top1":
        return text
    low, high = (100 * bound for bound in row["ci95"])
    return f"{text} [{low:.1f}, {high:.1f}]"


def over(rows: Iterable[Row]) -> str:
    """What the intervals of rows are over."""
    return " or ".join(
        _in_order(f"{r['seeds']} seeds" if r["seeds"] > 1 else f"{r['n']} images" for r in rows)
    )


def _find(one: Group, condition: str, policy: str) -> Row | None:
    return next((r for r in one.rows if (r["condition"], r["policy"]) == (condition, policy)), None)


def _in_order(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
