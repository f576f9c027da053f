"""Results of a run as rows, and as a table for people."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bvit.evaluation.evaluator import EvalResult
from bvit.evaluation.statistics import calibration_error, paired_difference, wilson_interval
from bvit.tokens import Keep, Policy

Row = dict[str, Any]

COLUMNS = (
    ("condition", "condition", "{}"),
    ("policy", "policy", "{}"),
    ("tokens", "tokens", "{:.3g}"),
    ("top1", "top-1 %", "{:.2f}"),
    ("ci95", "95 % interval", "[{:.1f}, {:.1f}]"),
    ("top5", "top-5 %", "{:.2f}"),
    ("difference", "vs keep", "{:+.2f}"),
    ("difference_ci95", "95 % interval", "[{:+.1f}, {:+.1f}]"),
    ("gflops", "GFLOPs", "{:.3f}"),
    ("images_per_s", "images/s", "{:.0f}"),
)
# How sure a model is beside how right: in the report alone.
CALIBRATION = (
    ("condition", "condition", "{}"),
    ("policy", "policy", "{}"),
    ("loss", "cross-entropy", "{:.4f}"),
    ("ece", "ECE %", "{:.2f}"),
)
NOTHING = "–"
IN_PERCENT = ("top1", "ci95", "top5", "difference", "difference_ci95", "ece")


def make_rows(results: Sequence[EvalResult], costs: dict[Policy, dict[str, Any]]) -> list[Row]:
    """Sums results up, one row for each condition and policy.

    Args:
      results: of `evaluate`.
      costs: policy → its "tokens", "gflops" and "images_per_s".

    Returns:
      Rows with shares in [0, 1]; "difference" is the top-1 minus that of `keep` on the same
      images, with its paired interval, and None for `keep` itself. "tokens" are those that a block
      computes for an image, the mean over the blocks. "loss" is the mean cross-entropy, None where
      it is not finite, and "ece" the expected calibration error.
    """
    baseline = {one.condition: one for one in results if one.policy == Keep()}
    rows = []
    for result in results:
        right = result.correct()
        keep = baseline.get(result.condition)
        difference, interval = None, None
        if keep is not None and keep is not result:
            difference, interval = paired_difference(right, keep.correct())
        rows.append(
            {
                "condition": result.condition,
                "policy": result.policy.label,
                "top1": _mean(right),
                "top5": _mean(result.correct(5)),
                "loss": _mean(result.loss),
                "ece": calibration_error(result.confidence, right),
                "n": len(right),
                "ci95": list(wilson_interval(int(right.sum()), len(right))),
                "difference": difference,
                "difference_ci95": None if interval is None else list(interval),
                **costs[result.policy],
            }
        )
    return rows


def _mean(values: np.ndarray) -> float | None:
    mean = float(values.mean()) if len(values) else 0.0
    return mean if np.isfinite(mean) else None  # as JSON has it


def table_lines(rows: Sequence[Row]) -> list[list[str]]:
    """The rows as cells of text, header first."""
    cells = [[format_cell(row, key, form) for key, _, form in COLUMNS] for row in rows]
    return [[title for _, title, _ in COLUMNS], *cells]


def align(lines: Sequence[Sequence[str]]) -> str:
    """Cells of text as a Markdown table, aligned so that it reads well in a terminal too."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in [lines[0], rule, *lines[1:]]
    )


def format_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    return align(table_lines(rows))


def upgrade(rows: Sequence[Row]) -> list[Row]:
    """Rows as `make_rows` makes them now, from those of older runs.

    Their budgets stood apart, and they have no loss and no calibration.
    """
    rows = [{"loss": None, "ece": None} | row for row in rows]
    return [
        row | {"policy": row["policy"] + ("" if row["budget"] is None else f":{row['budget']}")}
        if "budget" in row
        else row
        for row in rows
    ]


def family(row: Row) -> str:
    """A row's policy without its budget, "cluster" of "cluster:0.5": one line in a plot."""
    return row["policy"].partition(":")[0]


def format_cell(row: Row, key: str, form: str) -> str:
    """One of the `COLUMNS` of a row, as text."""
    value = row[key]
    if value is None:
        return NOTHING
    scale = 100 if key in IN_PERCENT else 1
    values = value if isinstance(value, list) else [value]
    return form.format(*(v * scale if isinstance(v, float) else v for v in values))


def format_value(value: Any) -> str:
    """A setting as text."""
    return NOTHING if value in (None, "", []) else str(value)
