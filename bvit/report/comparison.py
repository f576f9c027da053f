"""Runs side by side: grouped by what differs in their configs, with means over seeds."""

import dataclasses
import functools
import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from bvit import config as config_lib
from bvit.evaluation.rows import Row, format_value
from bvit.evaluation.statistics import t_interval
from bvit.report import lineage
from bvit.run import Run

# Settings that do not distinguish runs: what was tested, and how the run was computed. (`data.dir`
# does: another folder may hold other images.)
IGNORED = ("seed", "eval", "log", "checkpoint", "mesh", "profile", "data.num_workers")
# If more settings than these differ, the redundant ones are left out of the tables of results; if
# there are still more, the tables have the names of the runs instead.
MANY_COLUMNS = 4
PRETRAINED = "pretrained"
# Columns that are averaged over seeds without an interval.
AVERAGED = ("tokens", "top5", "gflops", "images_per_s")
# The same, where older runs lack them.
SOMETIMES = ("loss", "ece")


def trained_on(settings: dict[str, Any]) -> str:
    """The condition a run trained on, or "pretrained" if it only evaluated given weights."""
    only_evaluated = settings["init_from"] and settings["train.steps"] == 0
    return PRETRAINED if only_evaluated else settings["train.condition"]


def caption(run: Run) -> str:
    """What was trained, for how long, and on how many images it was tested."""
    c, found = run.settings, run.results
    return (
        f"{c['model.name']} on {c['data.name']} at {c['data.image_size']} px, {trained_on(c)}, "
        f"{found['step']} steps of {c['train.batch_size']}, n = {found['rows'][0]['n']}"
    )


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
      settings: those in which the groups differ.
      runs: at least one.
      shown: the group's cells in a table, title → text.
      label: the same in a legend; "" if there is only one group.
    """

    settings: dict[str, Any]
    runs: tuple[Run, ...]
    shown: dict[str, str]
    label: str

    @functools.cached_property
    def rows(self) -> list[Row]:
        """A row for each condition and policy: the mean over seeds; "seeds" is their number.

        The 95 % interval of several seeds is that of their mean (`t_interval`); that of a single
        seed is over its images. A seed that was run twice counts once.
        """
        cells: dict[tuple[str, str], dict[int, Row]] = {}
        for run in self.runs:
            for row in run.results["rows"]:
                cell = cells.setdefault((row["condition"], row["policy"]), {})
                cell.setdefault(run.results["seed"], row)
        return [_mean_row(list(cell.values())) for cell in cells.values()]


def _start(run: Run) -> lineage.Start:
    """Where the weights of a run came from."""
    # Older runs did not record their ancestors.
    ancestors = [config_lib.complete(one) for one in run.results.get("ancestors", [])]
    # The settings of each say where it started. Ancestors name each other by paths, which are left
    # out; the last one names the weights that all of them started from.
    described = [
        telling_apart(one | {"init_from": ancestors[-1]["init_from"]}) for one in ancestors
    ]
    return lineage.Start(
        run.settings["init_from"],
        run.settings["seed"],
        tuple(
            (json.dumps(settings, sort_keys=True), one["seed"])
            for settings, one in zip(described, ancestors, strict=True)
        ),
    )


def _mean_row(rows: Sequence[Row]) -> Row:
    first = rows[0]
    if len(rows) == 1:
        return {**first, "seeds": 1}
    mean: Row = {key: statistics.fmean(row[key] for row in rows) for key in AVERAGED}
    for key in SOMETIMES:
        values = [row[key] for row in rows]
        mean[key] = None if None in values else statistics.fmean(values)
    mean["top1"], interval = t_interval([row["top1"] for row in rows])
    mean["ci95"] = [max(0.0, interval[0]), min(1.0, interval[1])]
    if all(row["difference"] is not None for row in rows):
        mean["difference"], interval = t_interval([row["difference"] for row in rows])
        mean["difference_ci95"] = list(interval)
    return {**first, **mean, "seeds": len(rows)}


def group(runs: Iterable[Run]) -> list[Group]:
    """Groups runs by the settings in which they differ, and sorts the groups by them.

    Runs that started from runs which differ only in their seed count as started from the same.
    """
    runs = list(runs)
    starts = lineage.names([_start(run) for run in runs])
    found = [run.settings | {"init_from": name} for run, name in zip(runs, starts, strict=True)]
    keys = differing(found)
    members: dict[str, list[Run]] = {}
    for run, one in zip(runs, found, strict=True):
        members.setdefault(json.dumps({key: one.get(key) for key in keys}), []).append(run)
    settings = [json.loads(differ) for differ in members]
    columns = telling(settings)
    groups = zip(settings, members.values(), strict=True)
    if len(columns) <= MANY_COLUMNS:
        found = [
            Group(
                differ,
                tuple(one),
                {key: format_value(differ[key]) for key in columns},
                ", ".join(_named(key, differ[key]) for key in columns),
            )
            for differ, one in groups
        ]
        return sorted(found, key=lambda one: [_order(one.settings[key]) for key in columns])
    return [
        Group(differ, tuple(one), {"run": name}, name)
        for differ, one in groups
        for name in [one[0].name + (" …" if len(one) > 1 else "")]
    ]


def differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The keys of the settings in which runs differ, in the order of the config."""
    keys = dict.fromkeys(key for one in settings for key in telling_apart(one))
    return [key for key in keys if len({json.dumps(one.get(key)) for one in settings}) > 1]


def telling_apart(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings without those that do not distinguish runs (`IGNORED`)."""
    return {
        key: value
        for key, value in settings.items()
        if not any(key == free or key.startswith(free + ".") for free in IGNORED)
    }


def telling(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The keys to show in each row: all, unless they are many.

    Of many, as between a CNN and a ViT, a key is shown if it distinguishes rows that the keys
    before it do not.
    """
    keys = list(settings[0])
    if len(keys) <= MANY_COLUMNS:
        return keys
    shown: list[str] = []
    for key in sorted(keys, key=lambda key: key != "model.name"):  # others depend on it
        if _distinct(settings, [*shown, key]) > _distinct(settings, shown):
            shown.append(key)
    return shown


def _distinct(settings: Sequence[dict[str, Any]], keys: Sequence[str]) -> int:
    return len({json.dumps([one[key] for key in keys]) for one in settings})


def _named(key: str, value: Any) -> str:
    """A value in a legend: words alone, anything else with its key."""
    if isinstance(value, str) and value:
        return value
    return f"{key.rpartition('.')[2]}={format_value(value)}"


def _order(value: Any) -> tuple[int, float, str]:
    """A sort key: numbers come first, then words, then settings that are not set."""
    if value is None:
        return 2, 0.0, ""
    return (0, value, "") if isinstance(value, int | float) else (1, 0.0, str(value))
