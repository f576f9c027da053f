"""The tables of the paper that this project follows, beside what our runs give for their cells.

Kim, Kim and Han, “Image Classification of Blurred Images Without Deblurring”, Tables 1 to 5.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

PRETRAINED = "pretrained"
NOT_RUN = "not run"


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table: how the model was trained, and what it was tested on."""

    title: str
    train: str
    condition: str
    policy: str = "keep"


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of the paper.

    Attributes:
      title: its number and what it shows.
      metric: "top1" or "top5".
      columns: what its columns are.
      numbers: model → the paper's percentages, one for each column.
    """

    title: str
    metric: str
    columns: tuple[Column, ...]
    numbers: dict[str, tuple[float, ...]]


_TESTED = (Column("sharp", PRETRAINED, "sharp"), Column("blurred", PRETRAINED, "blur"))
_TRAINED = (Column("trained on blur", "blur", "blur"), Column("trained on mix", "mix", "blur"))
_REMOVED = (
    Column("original", "", "region"),
    Column("patches removed", "", "region", policy="zero"),
)
TABLES = (
    Table(
        "Table 1. Weights trained on sharp pictures, top-1",
        "top1",
        _TESTED,
        {"resnet50": (76.13, 63.16), "vgg19": (72.38, 54.12), "googlenet": (69.78, 55.03)},
    ),
    Table(
        "Table 2. Weights trained on sharp pictures, top-5",
        "top5",
        _TESTED,
        {"resnet50": (92.86, 85.08), "vgg19": (90.88, 78.19), "googlenet": (89.53, 79.14)},
    ),
    Table(
        "Table 3. Trained from scratch, tested on blurred pictures, top-1",
        "top1",
        _TRAINED,
        {"resnet50": (58.69, 61.24), "vgg19": (46.33, 48.19), "googlenet": (48.97, 51.62)},
    ),
    Table(
        "Table 4. Trained from scratch, tested on blurred pictures, top-5",
        "top5",
        _TRAINED,
        {"resnet50": (80.12, 83.72), "vgg19": (71.86, 73.55), "googlenet": (73.42, 76.98)},
    ),
    Table(
        "Table 5. A ViT on pictures blurred in regions, blurry patches removed, top-1",
        "top1",
        _REMOVED,
        {"vit": (58.04, 51.75)},
    ),
)


def training_of(config: dict[str, Any]) -> str:
    """What a run trained on: a condition, or "pretrained" if it only evaluated given weights."""
    only_evaluated = config["init_from"] and config["train"]["steps"] == 0
    return PRETRAINED if only_evaluated else config["train"]["condition"]


def lines(table: Table, results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A table as rows of text, header first: model, then the paper's number and ours by column.

    Args:
      table: one of `TABLES`.
      results: contents of the `results.json` of runs. Models that the paper does not have get
        rows of their own, without the paper's numbers.
    """
    header = ["model"]
    for column in table.columns:
        header += [f"{column.title}: paper", "ours [95 % interval]"]
    models = dict.fromkeys(table.numbers)
    for result in results:
        name = _row_name(result["config"]["model"]["name"], table)
        if any(_matching(column, table, [result], name) for column in table.columns):
            models[name] = None
    rows = [header]
    for name in models:
        row = [name]
        published = table.numbers.get(name, ("–",) * len(table.columns))
        for number, column in zip(published, table.columns, strict=True):
            found = _matching(column, table, results, name)
            row += [str(number), _ours(found, table.metric)]
        rows.append(row)
    return rows


def _row_name(model: str, table: Table) -> str:
    return "vit" if "vit" in table.numbers and model.startswith("vit") else model


def _matching(
    column: Column, table: Table, results: Sequence[dict[str, Any]], name: str
) -> list[dict[str, Any]]:
    return [
        row
        for result in results
        if _row_name(result["config"]["model"]["name"], table) == name
        and column.train in ("", training_of(result["config"]))
        for row in result["rows"]
        if (row["condition"], row["policy"], row["budget"])
        == (column.condition, column.policy, None)
    ]


def _ours(rows: Sequence[dict[str, Any]], metric: str) -> str:
    if not rows:
        return NOT_RUN
    values = [100 * row[metric] for row in rows]
    if len(rows) > 1:
        spread = f"{min(values):.2f} to {max(values):.2f}"
        return f"{statistics.mean(values):.2f} (of {len(rows)} runs, {spread})"
    if metric == "top1":
        low, high = (100 * bound for bound in rows[0]["ci95"])
        return f"{values[0]:.2f} [{low:.1f}, {high:.1f}]"
    return f"{values[0]:.2f}"
