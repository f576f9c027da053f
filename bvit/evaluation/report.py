"""Results of a run as rows, as a table for people, and as plots."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bvit.evaluation.evaluate import Outcome
from bvit.evaluation.statistics import paired_difference, wilson_interval
from bvit.models.inputs import Policy

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
COSTS = (("gflops", "GFLOPs for an image"), ("images_per_s", "images/s"))
SIGMA_CONDITION = "gaussian:"
IN_PERCENT = ("top1", "ci95", "top5", "difference", "difference_ci95")


def make_rows(outcomes: Sequence[Outcome], costs: dict[Policy, dict[str, Any]]) -> list[Row]:
    """Sums outcomes up, one row for each condition and policy.

    Args:
      outcomes: of `evaluate`.
      costs: policy → its "tokens", "gflops" and "images_per_s".

    Returns:
      Rows with shares in [0, 1]; "difference" is the top-1 minus that of `keep` on the same
      pictures, with its paired interval, and None for `keep` itself.
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
                "policy": outcome.policy.name,
                "budget": outcome.policy.budget,
                "top1": _mean(right),
                "top5": _mean(outcome.correct(5)),
                "n": len(right),
                "ci95": list(wilson_interval(int(right.sum()), len(right))),
                "difference": difference,
                "difference_ci95": None if interval is None else list(interval),
                **costs[outcome.policy],
            }
        )
    return rows


def _mean(right: np.ndarray) -> float:
    return float(right.mean()) if len(right) else 0.0


def table_lines(rows: Sequence[Row]) -> list[list[str]]:
    """The rows as cells of text, header first."""
    cells = [[_cell(row, key, form) for key, _, form in COLUMNS] for row in rows]
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


def policy_label(row: Row) -> str:
    """A row's policy with its budget, as one types it."""
    return row["policy"] if row["budget"] is None else f"{row['policy']}:{row['budget']}"


def _cell(row: Row, key: str, form: str) -> str:
    value = policy_label(row) if key == "policy" else row[key]
    if value is None:
        return "–"
    scale = 100 if key in IN_PERCENT else 1
    values = value if isinstance(value, list) else [value]
    return form.format(*(v * scale if isinstance(v, float) else v for v in values))


def draw(rows: Sequence[Row], lines: Sequence[dict[str, float]]) -> dict[str, Figure]:
    """The plots of a run, by name: from its rows, and from the lines of its `metrics.jsonl`."""
    return {
        "accuracy": _draw_accuracy(rows),
        "tradeoff": draw_tradeoff(rows),
        "curves": _draw_curves(lines),
    }


def draw_tradeoff(rows: Sequence[Row]) -> Figure:
    """Accuracy against cost: a column a condition, a line a policy through its budgets.

    Above against the operations of an image, below against the images a second that were measured.
    """
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    figure = Figure(figsize=(3.2 * len(conditions) + 1.2, 6), layout="constrained")
    grid = figure.subplots(len(COSTS), len(conditions), squeeze=False, sharey=True, sharex="row")
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    for line, (cost, title) in zip(grid, COSTS, strict=True):
        for axes, condition in zip(line, conditions, strict=True):
            for i, policy in enumerate(policies):
                points = sorted(
                    (row[cost], 100 * row["top1"], *(100 * bound for bound in row["ci95"]))
                    for row in rows
                    if (row["condition"], row["policy"]) == (condition, policy)
                )
                if not points:
                    continue
                x, top1, low, high = np.array(points).T
                axes.errorbar(
                    x,
                    top1,
                    yerr=(top1 - low, high - top1),
                    color=f"C{i}",  # the same in every panel
                    marker="o",
                    capsize=2,
                    label=policy,
                )
            axes.set(xlabel=title, xlim=(0, None))
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel("top-1 (%), 95 % interval")
    for axes, condition in zip(grid[0], conditions, strict=True):
        axes.set_title(condition)
    named = {}
    for axes in grid[0]:
        named |= {
            label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
    figure.legend(
        named.values(), named.keys(), title="policy", frameon=False, loc="outside right center"
    )
    return figure


def draw_sigma(runs: dict[str, Sequence[Row]]) -> Figure:
    """Accuracy against σ of a Gaussian blur, one line a run and policy.

    Args:
      runs: label → rows; those of conditions "gaussian:SIGMA" are drawn.

    Raises:
      ValueError: no run has such rows.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, rows in runs.items():
        tested = [row for row in rows if row["condition"].startswith(SIGMA_CONDITION)]
        for policy in dict.fromkeys(policy_label(row) for row in tested):
            line = sorted(
                (float(row["condition"].removeprefix(SIGMA_CONDITION)), row["top1"], *row["ci95"])
                for row in tested
                if policy_label(row) == policy
            )
            sigma, top1, low, high = (np.array(column) for column in zip(*line, strict=True))
            axes.plot(sigma, 100 * top1, marker="o", label=f"{label}, {policy}")
            axes.fill_between(sigma, 100 * low, 100 * high, alpha=0.2)
    if not axes.lines:
        raise ValueError(
            f"no run was tested on {SIGMA_CONDITION}…: evaluate with e.g. "
            "--config.eval.conditions=gaussian:0,gaussian:1,gaussian:2."
        )
    axes.set(xlabel="σ of the blur (pixels)", ylabel="top-1 accuracy (%), 95 % interval")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """A figure as a picture, uint8 [h, w, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _draw_accuracy(rows: Sequence[Row]) -> Figure:
    """Top-1 with its interval, one group a condition, one bar a policy."""
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    labels = list(dict.fromkeys(policy_label(row) for row in rows))
    figure = Figure(figsize=(2.5 + 0.4 * len(rows), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(labels)
    for i, label in enumerate(labels):
        bars = [row for row in rows if policy_label(row) == label]
        shift = (i - (len(labels) - 1) / 2) * width
        x = [conditions.index(row["condition"]) + shift for row in bars]
        top1 = np.array([row["top1"] for row in bars]) * 100
        errors = np.abs(np.array([row["ci95"] for row in bars]).T * 100 - top1)
        axes.bar(x, top1, width * 0.9, yerr=errors, capsize=2, label=label)
    axes.set_xticks(range(len(conditions)), conditions)
    axes.set(ylabel="top-1 accuracy (%), 95 % interval", ylim=(0, 100))
    axes.legend(title="policy", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_curves(lines: Sequence[dict[str, float]]) -> Figure:
    """Training loss and accuracy against the step."""
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, [line["loss"] for line in lines])
    left.set(xlabel="step", ylabel="training loss")
    right.plot(steps, [100 * line["accuracy"] for line in lines])
    right.set(xlabel="step", ylabel="training accuracy (%)", ylim=(0, 100))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
