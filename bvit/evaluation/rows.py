"""Results of a run as rows, and rows as text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bvit.evaluation.evaluate import Outcome
from bvit.evaluation.statistics import paired_difference, wilson_interval
from bvit.tokens.inputs import Policy

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
NOTHING = "–"
IN_PERCENT = ("top1", "ci95", "top5", "difference", "difference_ci95")


def make_rows(outcomes: Sequence[Outcome], costs: dict[Policy, dict[str, Any]]) -> list[Row]:
    """One row for each condition and policy.

    Args:
      outcomes: of `evaluate`.
      costs: policy of one budget → its "tokens", "gflops" and "images_per_s".

    Returns:
      Rows with shares in [0, 1]. "difference" is the top-1 minus that of `keep` on the same
      images, with its paired interval; None for `keep` itself. "tokens" and "gflops" are computed
      for one image, padding included; the mean, if its budget follows from the image.
      "tokens_used" are the tokens that were no padding.
    """
    baseline = {o.condition: o for o in outcomes if o.policy.name == "keep"}
    rows = []
    for outcome in outcomes:
        right = outcome.correct()
        keep = baseline.get(outcome.condition)
        difference, interval = None, None
        if keep is not None and keep is not outcome:
            difference, interval = paired_difference(right, keep.correct())
        rows.append(
            {
                "condition": outcome.condition,
                "policy": outcome.policy.family,
                "budget": outcome.policy.budget,
                "top1": _mean(right),
                "top5": _mean(outcome.correct(5)),
                "n": len(right),
                "ci95": list(wilson_interval(int(right.sum()), len(right))),
                "difference": difference,
                "difference_ci95": None if interval is None else list(interval),
                **_costs(outcome, costs),
            }
        )
    return rows


def _costs(outcome: Outcome, costs: dict[Policy, dict[str, Any]]) -> dict[str, Any]:
    if outcome.budget is None:
        found = dict(costs[outcome.policy])
    else:
        each = {policy.budget: costs[policy] for policy in outcome.policy.static}
        found = {"tokens": None, "gflops": None}
        for name in found:
            values = [each[budget][name] for budget in outcome.budget.tolist()]
            found[name] = float(np.mean(values)) if values and None not in values else None
        found["images_per_s"] = outcome.images_per_s
    used = found["tokens"] if outcome.used is None else _mean(outcome.used)
    return found | {"tokens_used": used}


def _mean(right: np.ndarray) -> float:
    return float(right.mean()) if len(right) else 0.0


def table_lines(rows: Sequence[Row]) -> list[list[str]]:
    """The rows as cells of text, header first."""
    cells = [[format_cell(row, key, form) for key, _, form in COLUMNS] for row in rows]
    return [[title for _, title, _ in COLUMNS], *cells]


def align(lines: Sequence[Sequence[str]]) -> str:
    """Cells of text, header first, as a Markdown table whose columns line up in a terminal too."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in [lines[0], rule, *lines[1:]]
    )


def format_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    return align(table_lines(rows))


def policy_label(row: Row) -> str:
    """A row's policy with its budget, as people type it."""
    return row["policy"] if row["budget"] is None else f"{row['policy']}:{row['budget']}"


def format_cell(row: Row, key: str, form: str) -> str:
    """One of the `COLUMNS` of a row, as text."""
    value = policy_label(row) if key == "policy" else row[key]
    if value is None:
        return NOTHING
    if key == "tokens" and row.get("tokens_used", value) != value:
        return f"{form.format(row['tokens_used'])} of {form.format(value)}"
    scale = 100 if key in IN_PERCENT else 1
    values = value if isinstance(value, list) else [value]
    return form.format(*(v * scale if isinstance(v, float) else v for v in values))


def format_value(value: Any) -> str:
    """A setting as text."""
    return NOTHING if value in (None, "", []) else str(value)
