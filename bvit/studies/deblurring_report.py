"""Deblurred or not as tables and a plot, of one run or several; the rows are `deblurring`'s."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from bvit.evaluation.statistics import paired_difference
from bvit.report.tables import NOT_RUN
from bvit.studies.deblurring import Row, unpack

TITLE = (
    "Deblurred or not: top-1 in % with its 95 % interval; then the difference to the first line, "
    "on the same pictures, with its interval"
)
MARKERS = "osD^vP*X"
# Panels side by side.
COLUMNS = 4
# Settings that say which pictures were tested, and what was done to them.
SAME = ("name", "dir", "test_split", "image_size", "resize")

Results = Mapping[str, dict[str, Any]]


def tables(runs: Results) -> list[tuple[str, list[list[str]]]]:
    """A table, title and cells with the header first, for all runs that were tested alike.

    Args:
      runs: name → contents of its `results.json`; those that deblurred nothing are passed over.
        The test blurs follow from the seed: runs of another seed or data get a table of their own.
    """
    return [(TITLE, _lines(alike)) for alike in _alike(runs)]


def draw(runs: Results) -> Figure:
    """Accuracy against milliseconds: a panel for each kind of picture, as in the first table.

    Raises:
      ValueError: no run deblurred anything.
    """
    if not _alike(runs):
        raise ValueError("no run deblurred its pictures: evaluate configs/deblur_or_not.py.")
    runs = _alike(runs)[0]
    panels = _in_order(row["pictures"] for rows in runs.values() for row in rows)
    methods = _in_order(row["method"] for rows in runs.values() for row in rows)
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(2.5 * columns + 2, 3.2 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, pictures in zip(grid.flat, panels, strict=False):
        axes.set_title(pictures, fontsize="medium")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.spines[["top", "right"]].set_visible(False)
        for i, (name, rows) in enumerate(runs.items()):
            _draw_run(axes, name, [r for r in rows if r["pictures"] == pictures], methods, f"C{i}")
    for axes in grid[:, 0]:
        axes.set_ylabel("top-1 (%), 95 % interval")
        axes.set_ylim(bottom=0)
    for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel("ms for a picture")
    named = {
        label: handle
        for axes in grid.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named, frameon=False, loc="outside right center")
    return figure


def _draw_run(
    axes: Axes, name: str, rows: Sequence[Row], methods: Sequence[str], color: str
) -> None:
    for row in rows:
        low, high = row["ci95"]
        axes.errorbar(
            row["ms"],
            100 * row["top1"],
            yerr=[[100 * (row["top1"] - low)], [100 * (high - row["top1"])]],
            color=color,
            marker=MARKERS[methods.index(row["method"]) % len(MARKERS)],
            linestyle="none",
            capsize=2,
            label=", ".join(filter(None, (name, row["method"]))),
        )


def _alike(runs: Results) -> list[dict[str, list[Row]]]:
    """Name → rows of those runs that deblurred, apart where their pictures were others."""
    found: dict[str, dict[str, list[Row]]] = {}
    for name, results in runs.items():
        rows = results.get("deblurring", [])  # older runs did not know of it
        if rows:
            tested = [results["config"]["data"][key] for key in SAME]
            key = json.dumps([results["seed"], rows[0]["n"], *tested])
            found.setdefault(key, {})[name] = rows
    return list(found.values())


def _lines(runs: Mapping[str, Sequence[Row]]) -> list[list[str]]:
    pictures = _in_order(row["pictures"] for rows in runs.values() for row in rows)
    named = len(runs) > 1
    lines = [[*(["run"] if named else []), "method", "ms", "GFLOPs", *pictures]]
    first: dict[str, np.ndarray] = {}
    for name, rows in runs.items():
        for method in _in_order(row["method"] for row in rows):
            own = {row["pictures"]: row for row in rows if row["method"] == method}
            any_row = next(iter(own.values()))
            cells = [_cell(own.get(kind), first) for kind in pictures]
            costs = [f"{any_row['ms']:.2f}", f"{any_row['gflops']:.3f}"]
            lines.append([*([name] if named else []), method, *costs, *cells])
    return lines


def _cell(row: Row | None, first: dict[str, np.ndarray]) -> str:
    """A row's accuracy; `first` remembers which pictures the first of each kind had right."""
    if row is None:
        return NOT_RUN
    text, right = f"{100 * row['top1']:.1f}", unpack(row)
    baseline = first.setdefault(row["pictures"], right)
    if baseline is right:
        low, high = row["ci95"]
        return f"{text} [{100 * low:.1f}, {100 * high:.1f}]"
    difference, (low, high) = paired_difference(right, baseline)
    return f"{text}: {100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _in_order(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
