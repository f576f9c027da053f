"""Runs side by side: grouped by what differs in their configs, with means over seeds."""

import dataclasses
import functools
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bvit import config as config_lib
from bvit.evaluation.rows import Row, format_value, policy_label
from bvit.evaluation.statistics import t_interval
from bvit.report import lineage

# What does not tell runs apart: what was tested of a run, and how it was computed, not what.
# (`data.dir` does: another folder may hold other pictures.)
IGNORED = ("seed", "eval", "log", "checkpoint", "mesh", "profile", "data.num_workers")
# With more columns than these, those that say nothing new are left out of the tables of results,
# and if they are still more, runs go by their names.
MANY_COLUMNS = 4
PRETRAINED = "pretrained"
# Of a row, what is averaged over seeds without an interval.
AVERAGED = ("tokens", "top5", "gflops", "images_per_s")


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      name: of its directory.
      results: what its `results.json` holds.
      lines: those of its `metrics.jsonl`.
      path: its directory.
    """

    name: str
    results: dict[str, Any]
    lines: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    path: Path = Path()

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Its config with dotted keys; what its time did not know yet, by today's default."""
        return _complete(self.results["config"])

    @functools.cached_property
    def start(self) -> lineage.Start:
        """Where its weights came from."""
        # Older runs did not write down which runs came before them.
        ancestors = [_complete(config) for config in self.results.get("ancestors", [])]
        # Where each of them started is told by the next one; the last by what it names itself.
        told = [telling_apart(one | {"init_from": ancestors[-1]["init_from"]}) for one in ancestors]
        return lineage.Start(
            self.settings["init_from"],
            self.settings["seed"],
            tuple(
                (json.dumps(t, sort_keys=True), one["seed"])
                for t, one in zip(told, ancestors, strict=True)
            ),
        )

    @property
    def trained_on(self) -> str:
        """A condition, or "pretrained" if it only evaluated given weights."""
        only_evaluated = self.settings["init_from"] and self.settings["train.steps"] == 0
        return PRETRAINED if only_evaluated else self.settings["train.condition"]

    @property
    def caption(self) -> str:
        """What was trained, for how long, and on how many pictures it was tested."""
        c, found = self.settings, self.results
        return (
            f"{c['model.name']} on {c['data.name']} at {c['data.image_size']} px, "
            f"{self.trained_on}, {found['step']} steps of {c['train.batch_size']}, "
            f"n = {found['rows'][0]['n']}"
        )


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
      settings: those in which the groups differ.
      runs: at least one.
      shown: what tells it from the others in a table, title → text.
      label: the same in a legend; "" where there are no others.
    """

    settings: dict[str, Any]
    runs: tuple[Run, ...]
    shown: dict[str, str]
    label: str

    @functools.cached_property
    def rows(self) -> list[Row]:
        """A row for each condition and policy: the mean over seeds, "seeds" says of how many.

        The 95 % interval of several seeds is that of their mean (`t_interval`); that of a single
        one is over its pictures. A seed that was run twice counts once.
        """
        cells: dict[tuple[str, str], dict[int, Row]] = {}
        for run in self.runs:
            for row in run.results["rows"]:
                cell = cells.setdefault((row["condition"], policy_label(row)), {})
                cell.setdefault(run.results["seed"], row)
        return [_mean_row(list(cell.values())) for cell in cells.values()]


def _complete(config: dict[str, Any]) -> dict[str, Any]:
    now = config_lib.flatten(config_lib.to_dict(config_lib.default_config()))
    known = {key: value for key, value in now.items() if not key.startswith("model.")}
    return known | config_lib.flatten(config)


def _mean_row(rows: Sequence[Row]) -> Row:
    first = rows[0]
    if len(rows) == 1:
        return {**first, "seeds": 1}
    mean: Row = {key: statistics.fmean(row[key] for row in rows) for key in AVERAGED}
    # Runs of before a threshold could leave places empty do not say how many were: none.
    mean["tokens_used"] = statistics.fmean(row.get("tokens_used", row["tokens"]) for row in rows)
    mean["top1"], interval = t_interval([row["top1"] for row in rows])
    mean["ci95"] = [max(0.0, interval[0]), min(1.0, interval[1])]
    if all(row["difference"] is not None for row in rows):
        mean["difference"], interval = t_interval([row["difference"] for row in rows])
        mean["difference_ci95"] = list(interval)
    return {**first, **mean, "seeds": len(rows)}


def group(runs: Iterable[Run]) -> list[Group]:
    """Groups runs by what differs in their configs, and sorts the groups by it.

    Where runs started from others that differ in nothing but their seed, that is no difference.
    """
    runs = list(runs)
    starts = lineage.names([run.start for run in runs])
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
    """The keys, in the order of the config, in which runs differ and which tell them apart."""
    keys = dict.fromkeys(key for one in settings for key in telling_apart(one))
    return [key for key in keys if len({json.dumps(one.get(key)) for one in settings}) > 1]


def telling_apart(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings without the seed and all that does not change what is computed."""
    return {
        key: value
        for key, value in settings.items()
        if not any(key == free or key.startswith(free + ".") for free in IGNORED)
    }


def telling(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Those keys that stand in each row: all, unless they are many.

    Of many, as between a CNN and a ViT, only those that tell rows apart which the ones before them
    do not.
    """
    keys = list(settings[0])
    if len(keys) <= MANY_COLUMNS:
        return keys
    told: list[str] = []
    for key in sorted(keys, key=lambda key: key != "model.name"):  # what the others follow from
        if _distinct(settings, [*told, key]) > _distinct(settings, told):
            told.append(key)
    return told


def _distinct(settings: Sequence[dict[str, Any]], keys: Sequence[str]) -> int:
    return len({json.dumps([one[key] for key in keys]) for one in settings})


def _named(key: str, value: Any) -> str:
    """A value in a legend: with its key, unless it speaks for itself."""
    speaks = isinstance(value, str) and value
    return value if speaks else f"{key.rpartition('.')[2]}={format_value(value)}"


def _order(value: Any) -> tuple[int, float, str]:
    """Sorts numbers as numbers, before words, before what is not set."""
    if value is None:
        return 2, 0.0, ""
    return (0, value, "") if isinstance(value, int | float) else (1, 0.0, str(value))
