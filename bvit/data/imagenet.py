"""The names of ImageNet's 1,000 classes, by the WordNet ids that its folders have."""

import functools
from importlib import resources

TABLE = "imagenet_classes.txt"


@functools.cache
def class_names() -> dict[str, str]:
    """WordNet id → English name, in the order of the classes: {"n01440764": "tench", …}."""
    text = resources.files(__package__).joinpath(TABLE).read_text(encoding="utf-8")
    return dict(line.split("\t") for line in text.splitlines())


def readable(label: str) -> str:
    """The English name of a class that is called by its WordNet id; other labels unchanged."""
    return class_names().get(label, label)
