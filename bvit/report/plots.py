"""Plots of results: accuracy by condition, by cost and by the blur's σ, and training curves.

Each takes groups, label → rows or lines, so that one run and many are drawn by the same code.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bvit.evaluation.rows import Row, family

COSTS = (("gflops", "GFLOPs for an image"), ("images_per_s", "images/s"))
CURVES = (("loss", "training loss", 1), ("accuracy", "training accuracy (%)", 100))
TOP1 = "top-1 (%), 95 % interval"
SIGMA_CONDITION = "gaussian:"
# A curve's moving mean is over this share of its points.
SMOOTHED = 0.05
# Width and height of a letter of a legend, in inches.
LETTER = (0.08, 0.22)

Rows = Mapping[str, Sequence[Row]]
Lines = Mapping[str, Sequence[Sequence[dict[str, Any]]]]


def draw(groups: Rows, lines: Lines) -> dict[str, Figure]:
    """All plots that the results allow, by name.

    Args:
      groups: label → rows of results; the label "" is not shown.
      lines: label → for each of its runs, the lines of its `metrics.jsonl`.
    """
    figures = {"accuracy": draw_accuracy(groups)}
    if len(list(_series(groups))) > 1:
        figures["tradeoff"] = draw_tradeoff(groups)
    if len(_sigmas(groups)) > 1:
        figures["sigma"] = draw_sigma(groups)
    if any(run for runs in lines.values() for run in runs):
        figures["curves"] = draw_curves(lines)
    return figures


def draw_accuracy(groups: Rows) -> Figure:
    """Top-1 with its interval: a tick for each condition, a colour for each group and policy."""
    conditions = _conditions(groups)
    series = list(_series(groups))
    width = max(5.0, 1.5 + len(conditions) * (0.25 * len(series) + 0.25))
    figure = Figure(figsize=(min(width, 16.0), 4), layout="constrained")
    axes = figure.subplots()
    for i, (label, _, _, rows) in enumerate(series):
        shift = (i - (len(series) - 1) / 2) * 0.8 / len(series)
        x = [conditions.index(row["condition"]) + shift for row in rows]
        draw_points(axes, x, rows, i, label, linestyle="none")
    for between in range(1, len(conditions)):
        axes.axvline(between - 0.5, color="0.9", linewidth=1)
    tilted = {"rotation": 30, "ha": "right"} if len(conditions) > 6 else {}
    axes.set_xticks(range(len(conditions)), conditions, **tilted)
    axes.set(ylabel=TOP1, ylim=(0, 100), xlim=(-0.5, len(conditions) - 0.5))
    add_legend(figure, [axes])
    return figure


def draw_tradeoff(groups: Rows) -> Figure:
    """Accuracy against cost: a column a condition, a line a group and policy through its budgets.

    The upper row is against the operations of an image, the lower one against the images a second.
    Conditions "gaussian:SIGMA" are left to `draw_sigma`, unless there are no others.
    """
    conditions = _conditions(groups)
    conditions = [c for c in conditions if not c.startswith(SIGMA_CONDITION)] or conditions
    figure = Figure(figsize=(2.6 * len(conditions) + 2, 5.6), layout="constrained")
    grid = figure.subplots(len(COSTS), len(conditions), squeeze=False, sharey=True, sharex="row")
    lines = list(dict.fromkeys((group, policy) for _, group, policy, _ in _series(groups)))
    several = len({policy for _, policy in lines}) > 1
    for line, (cost, title) in zip(grid, COSTS, strict=True):
        for axes, condition in zip(line, conditions, strict=True):
            for i, (group, policy) in enumerate(lines):
                points = sorted(
                    (
                        row
                        for row in groups[group]
                        if (row["condition"], family(row)) == (condition, policy)
                    ),
                    key=lambda row: row[cost],
                )
                if points:
                    label = _label(group, policy if several else "")
                    draw_points(axes, [row[cost] for row in points], points, i, label)
            axes.set(xlabel=title, xlim=(0, None))
        line[0].set_ylabel(TOP1)
    for axes, condition in zip(grid[0], conditions, strict=True):
        axes.set_title(condition)
    add_legend(figure, list(grid.flat))
    return figure


def draw_sigma(groups: Rows) -> Figure:
    """Accuracy against the σ of a Gaussian blur, a line a group and policy.

    Raises:
      ValueError: nothing was tested on conditions "gaussian:SIGMA".
    """
    if not _sigmas(groups):
        raise ValueError(
            f"no run was tested on {SIGMA_CONDITION}…: evaluate with e.g. "
            "--config.eval.conditions=gaussian:0,gaussian:1,gaussian:2."
        )
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for i, (label, _, _, rows) in enumerate(_series(groups)):
        tested = sorted((row for row in rows if _sigma(row) is not None), key=_sigma)
        if tested:
            draw_points(axes, [_sigma(row) for row in tested], tested, i, label)
    axes.set(xlabel="σ of the blur (pixels)", ylabel=TOP1, ylim=(0, None))
    add_legend(figure, [axes])
    return figure


def draw_curves(lines: Lines) -> Figure:
    """Loss and accuracy against the step: faint as logged, strong as a moving mean."""
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    panels = figure.subplots(1, len(CURVES))
    for i, (label, runs) in enumerate(lines.items()):
        for run in filter(None, runs):
            for axes, (key, title, scale) in zip(panels, CURVES, strict=True):
                # What was not finite is null in the file.
                points = [(line["step"], line[key]) for line in run if line.get(key) is not None]
                steps, values = np.array(points or [(np.nan, np.nan)], float).T
                axes.plot(steps, values * scale, color=f"C{i}", alpha=0.2, linewidth=0.8)
                n = max(1, round(SMOOTHED * len(values)))
                smooth = np.convolve(values, np.full(n, 1 / n), "valid") * scale
                axes.plot(steps[n - 1 :], smooth, color=f"C{i}", label=label)
                axes.set(xlabel="step", ylabel=title)
    panels[1].set_ylim(0, 100)
    add_legend(figure, list(panels))
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """A figure as an image, uint8 [h, w, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _conditions(groups: Rows) -> list[str]:
    return list(dict.fromkeys(row["condition"] for rows in groups.values() for row in rows))


def _series(groups: Rows) -> Iterator[tuple[str, str, str, list[Row]]]:
    """Label, group, policy and rows of each colour."""
    several = len({row["policy"] for rows in groups.values() for row in rows}) > 1
    for group, rows in groups.items():
        for policy in dict.fromkeys(row["policy"] for row in rows):
            chosen = [row for row in rows if row["policy"] == policy]
            label = _label(group, policy if several else "")
            yield label, group, family(chosen[0]), chosen


def _label(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _sigma(row: Row) -> float | None:
    name, _, sigma = row["condition"].partition(":")
    return float(sigma) if name + ":" == SIGMA_CONDITION else None


def _sigmas(groups: Rows) -> set[float]:
    found = {_sigma(row) for rows in groups.values() for row in rows}
    return {sigma for sigma in found if sigma is not None}


def draw_points(
    axes: Axes, x: Sequence[float], rows: Sequence[Row], color: int, label: str, **style: str
) -> None:
    """Draws top-1 with its interval.

    Args:
      axes: where.
      x: of each row.
      rows: with "top1" and "ci95", as shares.
      color: which of matplotlib's; they come again after ten, with another marker.
      label: in the legend.
      **style: of the points and the line.
    """
    top1 = 100 * np.array([row["top1"] for row in rows])
    bounds = 100 * np.array([row["ci95"] for row in rows]).T
    axes.errorbar(
        x,
        top1,
        yerr=np.abs(bounds - top1),
        color=f"C{color}",
        markersize=4,
        capsize=2,
        label=label,
        **{"marker": "osD^v"[color // 10 % 5], **style},
    )


def add_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Removes the frames, and adds one legend if there are several labels in the panels."""
    named = {}
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    named.pop("", None)
    if len(named) > 1:
        width, height = figure.get_size_inches()
        wanted = LETTER[0] * max(map(len, named)), LETTER[1] * (len(named) + 1)
        figure.set_size_inches(width + wanted[0], max(height, wanted[1]))
        figure.legend(named.values(), named.keys(), frameon=False, loc="outside right upper")
