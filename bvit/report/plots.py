"""Plots of results: accuracy by condition, by cost and by the blur's σ, and training curves.

Each takes groups, label → rows or lines, so that one run and many are drawn by the same code.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import MaxNLocator

from bvit.evaluation.rows import Row, family
from bvit.outputs import PDF_TEXT
from bvit.tokens import POLICIES

COSTS = (("gflops", "GFLOPs for an image"), ("images_per_s", "images/s"))
# Of a line of metrics.jsonl: training, validation, title and scale.
CURVES = (
    ("loss", "valid_loss", "loss", 1),
    ("accuracy", "valid_accuracy", "accuracy (%)", 100),
)
TOP1 = "top-1 (%), 95 % interval"
SIGMA_CONDITION = "gaussian:"
# A curve's moving mean is over this share of its points.
SMOOTHED = 0.05
# Width and height of a letter of a legend, in inches.
LETTER = (0.08, 0.22)
# So few ticks, and so much space between columns as a share of their width, keep the numbers of
# neighbouring panels apart.
TICKS, COLUMN_SPACE = 4, 0.08
# A policy has one colour in all figures; its further budgets have lighter shades of it.
PALETTE = ("C0", "C1", "C2", "C5", "C7", "C3", "C4", "C8", "C9", "C6", "black")
COLORS = dict(zip(POLICIES, itertools.cycle(PALETTE), strict=False))
SHADES = (0.0, 0.45, 0.7)
# Groups of runs have a marker and a kind of line each.
MARKERS, LINES = "osD^v", ("-", "--", ":", "-.")
DOTS_PER_INCH = 150

Rows = Mapping[str, Sequence[Row]]
Lines = Mapping[str, Sequence[Sequence[dict[str, Any]]]]


def draw(groups: Rows, lines: Lines, evaluations: Lines) -> dict[str, Figure]:
    """All plots that the results allow, by name.

    Args:
      groups: label → rows of results; the label "" is not shown.
      lines: label → for each of its runs, the lines of its `metrics.jsonl`.
      evaluations: the same of its `evaluations.jsonl`.
    """
    figures = {"accuracy": draw_accuracy(groups)}
    if len(list(_series(groups))) > 1:
        figures["tradeoff"] = draw_tradeoff(groups)
    if len(_sigmas(groups)) > 1:
        figures["sigma"] = draw_sigma(groups)
    if any(run for runs in lines.values() for run in runs):
        figures["curves"] = draw_curves(groups, lines, evaluations)
    return figures


def draw_accuracy(groups: Rows) -> Figure:
    """Top-1 with its interval: a tick for each condition, a colour for each group and policy."""
    conditions = _conditions(groups)
    series, styles = list(_series(groups)), _styles(groups)
    width = max(5.0, 1.5 + len(conditions) * (0.25 * len(series) + 0.25))
    figure = Figure(figsize=(min(width, 16.0), 4), layout="constrained")
    axes = figure.subplots()
    for i, (label, group, policy, rows) in enumerate(series):
        shift = (i - (len(series) - 1) / 2) * 0.8 / len(series)
        x = [conditions.index(row["condition"]) + shift for row in rows]
        draw_points(axes, x, rows, label, **styles[group, policy] | {"linestyle": "none"})
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
    figure.get_layout_engine().set(wspace=COLUMN_SPACE)
    grid = figure.subplots(len(COSTS), len(conditions), squeeze=False, sharey=True, sharex="row")
    lines = list(dict.fromkeys((g, family(rows[0])) for _, g, _, rows in _series(groups)))
    several, styles = len({policy for _, policy in lines}) > 1, _styles(groups)
    for line, (cost, title) in zip(grid, COSTS, strict=True):
        for axes, condition in zip(line, conditions, strict=True):
            for group, policy in lines:
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
                    style = styles[group, policy]
                    draw_points(axes, [row[cost] for row in points], points, label, **style)
            axes.set(xlabel=title, xlim=(0, None))
            axes.xaxis.set_major_locator(MaxNLocator(TICKS))
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
    styles = _styles(groups)
    for label, group, policy, rows in _series(groups):
        tested = sorted((row for row in rows if _sigma(row) is not None), key=_sigma)
        if tested:
            x = [_sigma(row) for row in tested]
            draw_points(axes, x, tested, label, **styles[group, policy])
    axes.set(xlabel="σ of the blur (pixels)", ylabel=TOP1, ylim=(0, None))
    add_legend(figure, [axes])
    return figure


def draw_curves(groups: Rows, lines: Lines, evaluations: Lines) -> Figure:
    """Loss and accuracy against the step, and below them the accuracy on the test images.

    Training is faint as logged and strong as a moving mean; validation is dashed.
    """
    tested = _tested(evaluations)
    figure = Figure(figsize=(10, 3.5 if not tested else 6.5), layout="constrained")
    figure.get_layout_engine().set(wspace=COLUMN_SPACE)
    rows = figure.add_gridspec(1 + bool(tested), 1)
    panels = rows[0].subgridspec(1, len(CURVES)).subplots()
    for i, (label, runs) in enumerate(lines.items()):
        color = f"C{i}" if len(lines) > 1 else "0.2"
        for run in filter(None, runs):
            for axes, (key, validated, title, scale) in zip(panels, CURVES, strict=True):
                steps, values = _points(run, key)
                axes.plot(steps, values * scale, color=color, alpha=0.2, linewidth=0.8)
                n = max(1, round(SMOOTHED * len(values)))
                smooth = np.convolve(values, np.full(n, 1 / n), "valid") * scale
                axes.plot(steps[n - 1 :], smooth, color=color, label=_label(label, "training"))
                axes.set(xlabel="step", ylabel=title)
                if any(validated in line for line in run):
                    steps, values = _points(run, validated)
                    label_valid = _label(label, "validation")
                    style = {"linestyle": "--", "marker": ".", "label": label_valid}
                    axes.plot(steps, values * scale, color=color, **style)
    panels[1].set_ylim(0, 100)
    drawn = list(panels)
    if tested:
        drawn += _draw_tested(rows[1], groups, tested)
    add_legend(figure, drawn)
    return figure


def _points(run: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a curve; what was not finite is null in the file, and left out."""
    points = [(line["step"], line[key]) for line in run if line.get(key) is not None]
    steps, values = np.array(points or [(np.nan, np.nan)], float).T
    return steps, values


# Condition → (group, policy) → for each run, its points.
_Tested = dict[str, dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]]]


def _tested(evaluations: Lines) -> _Tested:
    """The test accuracies on the way; nothing if all runs were only tested at their end."""
    found: _Tested = {}
    for group, runs in evaluations.items():
        for run in runs:
            for key in dict.fromkeys(key for line in run for key in line if key != "step"):
                condition, _, policy = key.rpartition("/")
                cell = found.setdefault(condition, {}).setdefault((group, policy), [])
                cell.append(_points(run, key))
    several = any(
        len(x) > 1 for cells in found.values() for runs in cells.values() for x, _ in runs
    )
    return found if several else {}


def _draw_tested(place: SubplotSpec, groups: Rows, tested: _Tested) -> list[Axes]:
    """A panel for each condition, a line for each group and policy."""
    styles = _styles(groups)
    panels = place.subgridspec(1, len(tested)).subplots(squeeze=False, sharey=True)[0]
    several = len({policy for cells in tested.values() for _, policy in cells}) > 1
    for axes, (condition, cells) in zip(panels, tested.items(), strict=True):
        for (group, policy), runs in cells.items():
            for steps, values in runs:
                label = _label(group, policy if several else "test")
                axes.plot(steps, 100 * values, label=label, markersize=4, **styles[group, policy])
        axes.set_title(condition)
        axes.set(xlabel="step", xlim=(0, None), ylim=(0, 100))
        axes.xaxis.set_major_locator(MaxNLocator(TICKS))
    panels[0].set_ylabel("test accuracy (%)")
    return list(panels)


def draw_confusion(
    tables: Mapping[str, np.ndarray], class_names: Sequence[str], policy: str
) -> Figure:
    """How often the images of each class get each label, a panel for each condition.

    Args:
      tables: condition → of `statistics.confusion`, as shares of each true class.
      class_names: of the rows and columns.
      policy: with its budget, for the title.
    """
    side = 1.5 + 0.16 * len(class_names)
    figure = Figure(figsize=(side * len(tables) + 1.5, side + 1.2), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    places = range(len(class_names))
    for axes, (condition, shares) in zip(panels, tables.items(), strict=True):
        image = axes.imshow(100 * shares, vmin=0, vmax=100, cmap="Blues")
        axes.set_title(_label(condition, policy))
        axes.set_xticks(places, class_names, rotation=90, fontsize="small")
        axes.set_yticks(places, class_names, fontsize="small")
        axes.set_xlabel("predicted class")
    panels[0].set_ylabel("true class")
    figure.colorbar(image, ax=panels, label="images of the true class (%)", shrink=0.7)
    return figure


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes a figure of a run as NAME.png, and as NAME.pdf for papers."""
    with matplotlib.rc_context(PDF_TEXT):
        for form in ("png", "pdf"):
            figure.savefig(folder / f"{name}.{form}", dpi=DOTS_PER_INCH)


def pixels(figure: Figure) -> np.ndarray:
    """A figure as an image, uint8 [h, w, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _conditions(groups: Rows) -> list[str]:
    return list(dict.fromkeys(row["condition"] for rows in groups.values() for row in rows))


def _series(groups: Rows) -> Iterator[tuple[str, str, str, list[Row]]]:
    """Label, group, policy with its budget, and rows of each series of points."""
    several = len({row["policy"] for rows in groups.values() for row in rows}) > 1
    for group, rows in groups.items():
        for policy in dict.fromkeys(row["policy"] for row in rows):
            chosen = [row for row in rows if row["policy"] == policy]
            label = _label(group, policy if several else "")
            yield label, group, policy, chosen


def _styles(groups: Rows) -> dict[tuple[str, str], dict[str, Any]]:
    """(group, policy) → its colour, marker and kind of line, with its budget or as a family.

    Where there is one policy alone, the groups have the colours.
    """
    policies = list(dict.fromkeys(row["policy"] for rows in groups.values() for row in rows))
    styles = {}
    for i, group in enumerate(groups):
        for policy in policies:
            name = policy.partition(":")[0]
            style: dict[str, Any]
            if len(policies) == 1:
                style = {"color": f"C{i % 10}", "marker": MARKERS[i // 10 % len(MARKERS)]}
            else:
                alike = [one for one in policies if one.partition(":")[0] == name]
                shade = SHADES[alike.index(policy) % len(SHADES)]
                color = _lighter(COLORS.get(name, "0.5"), shade)
                marker, line = MARKERS[i % len(MARKERS)], LINES[i % len(LINES)]
                style = {"color": color, "marker": marker, "linestyle": line}
            styles[group, policy] = style
            styles.setdefault((group, name), style)
    return styles


def _lighter(color: str, share: float) -> tuple[float, ...]:
    """A colour mixed with so much white."""
    return tuple(share + (1 - share) * channel for channel in to_rgb(color))


def _label(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _sigma(row: Row) -> float | None:
    name, _, sigma = row["condition"].partition(":")
    return float(sigma) if name + ":" == SIGMA_CONDITION else None


def _sigmas(groups: Rows) -> set[float]:
    found = {_sigma(row) for rows in groups.values() for row in rows}
    return {sigma for sigma in found if sigma is not None}


def draw_points(
    axes: Axes, x: Sequence[float], rows: Sequence[Row], label: str, **style: Any
) -> None:
    """Draws top-1 with its interval.

    Args:
      axes: where.
      x: of each row.
      rows: with "top1" and "ci95", as shares.
      label: in the legend.
      **style: of the points and the line, with their colour.
    """
    top1 = 100 * np.array([row["top1"] for row in rows])
    bounds = 100 * np.array([row["ci95"] for row in rows]).T
    axes.errorbar(
        x,
        top1,
        yerr=np.abs(bounds - top1),
        markersize=4,
        capsize=2,
        label=label,
        **style,
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
