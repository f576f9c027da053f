"""The paper's tables, beside what our runs give for their cells.

Kim, Kim and Han, “Image Classification of Blurred Images Without Deblurring”, Tables 1 to 5.
"""

import dataclasses
from collections.abc import Sequence

from bvit.data.imagenet import class_names
from bvit.evaluation.rows import NOTHING, Row
from bvit.models import is_vit
from bvit.report.comparison import PRETRAINED, Group, trained_on
from bvit.report.tables import NOT_RUN, cell, over
from bvit.run import Run

IMAGENET = "imagenet2012"


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table: how the model was trained, and the condition it was tested on."""

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
        "Table 1. Weights trained on sharp images, top-1",
        "top1",
        _TESTED,
        {"resnet50": (76.13, 63.16), "vgg19": (72.38, 54.12), "googlenet": (69.78, 55.03)},
    ),
    Table(
        "Table 2. Weights trained on sharp images, top-5",
        "top5",
        _TESTED,
        {"resnet50": (92.86, 85.08), "vgg19": (90.88, 78.19), "googlenet": (89.53, 79.14)},
    ),
    Table(
        "Table 3. Trained from scratch, tested on blurred images, top-1",
        "top1",
        _TRAINED,
        {"resnet50": (58.69, 61.24), "vgg19": (46.33, 48.19), "googlenet": (48.97, 51.62)},
    ),
    Table(
        "Table 4. Trained from scratch, tested on blurred images, top-5",
        "top5",
        _TRAINED,
        {"resnet50": (80.12, 83.72), "vgg19": (71.86, 73.55), "googlenet": (73.42, 76.98)},
    ),
    Table(
        "Table 5. A ViT on images blurred in regions, blurry patches removed, top-1",
        "top1",
        _REMOVED,
        {"vit": (58.04, 51.75)},
    ),
)


def is_imagenet(run: Run) -> bool:
    """Whether a run was tested on the classes of the paper; no other stands beside its numbers."""
    name = run.settings["data.name"]
    return name == IMAGENET or (name == "folder" and set(run.class_names) == set(class_names()))


def lines(table: Table, groups: Sequence[Group]) -> list[list[str]]:
    """A table as rows of text, header first: model, then the paper's number and ours by column.

    Args:
      table: one of `TABLES`.
      groups: our runs on ImageNet. Models that are not in the paper get rows of their own, without
        the paper's numbers. If several groups fill one cell, each is shown with its label.
    """
    header = ["model"]
    for column in table.columns:
        header += [f"{column.title}: paper", "ours [95 % interval]"]
    models = dict.fromkeys(table.numbers)
    for one in groups:
        if any(_found(column, one) for column in table.columns):
            models[_row_name(one, table)] = None
    models.pop("", None)
    rows = [header]
    for name in models:
        row = [name]
        published = table.numbers.get(name, (NOTHING,) * len(table.columns))
        ours = [one for one in groups if _row_name(one, table) == name]
        for number, column in zip(published, table.columns, strict=True):
            row += [str(number), _ours(column, table.metric, ours)]
        rows.append(row)
    return rows


def _row_name(one: Group, table: Table) -> str:
    """The row of a group in a table; "" if it has none, as a CNN among ViTs."""
    model = one.runs[0].settings["model.name"]
    if "vit" in table.numbers:
        return "vit" if is_vit(model) else ""
    return model


def _found(column: Column, one: Group) -> Row | None:
    if column.train not in ("", trained_on(one.runs[0].settings)):
        return None
    wanted = (column.condition, column.policy)
    return next((r for r in one.rows if (r["condition"], r["policy"]) == wanted), None)


def _ours(column: Column, metric: str, groups: Sequence[Group]) -> str:
    found = [(one.label, row) for one in groups if (row := _found(column, one))]
    texts = []
    for label, row in found:
        notes = [over([row])] if row["seeds"] > 1 else []
        notes += [label] if len(found) > 1 else []
        texts.append(cell(row, metric) + (f" ({', '.join(notes)})" if notes else ""))
    return "; ".join(texts) or NOT_RUN
