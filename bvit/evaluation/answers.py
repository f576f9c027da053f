"""A model's answers to each test image, in a file, so that runs can be compared by image."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bvit import npz
from bvit.evaluation.evaluator import EvalResult
from bvit.outputs import whole

# In the file: the indices of the images, their classes, and what separates a condition from a
# policy in a key, "region|merge:72". Neither name contains it. Predicted classes have a third part.
INDEX, LABEL, SEPARATOR, PREDICTED = "index", "label", "|", "|predicted"

Cell = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Answers:
    """A model's answers to every test image.

    Attributes:
      index: the test images, ascending, each once; unsigned int [n].
      ranks: (condition, policy's label) → how many classes scored above the true one (0: top-1
        right); unsigned int [n], in the order of `index`.
      label: the true classes, unsigned int [n]; None in files of older runs.
      predicted: as `ranks`, the predicted classes; empty in files of older runs.
    """

    index: np.ndarray
    ranks: Mapping[Cell, np.ndarray]
    label: np.ndarray | None
    predicted: Mapping[Cell, np.ndarray]


def read(path: Path) -> Answers:
    """Reads what `write` wrote.

    Raises:
      ValueError: the file is damaged.
    """
    try:
        arrays = npz.read(path)
        index = arrays.pop(INDEX)
        if any(rank.shape != index.shape for rank in arrays.values()):
            raise ValueError("its arrays differ in length")
        label = arrays.pop(LABEL, None)
        predicted = {
            _cell(key.removesuffix(PREDICTED)): arrays.pop(key)
            for key in [key for key in arrays if key.endswith(PREDICTED)]
        }
        ranks = {_cell(key): rank for key, rank in arrays.items()}
        return Answers(index, ranks, label, predicted)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error!r}).") from error


def write(path: Path, outcomes: Sequence[EvalResult]) -> None:
    """Writes a file whole or not at all.

    An image takes at most two bytes for each condition and policy (four with more than 255
    classes), two for its class and four for its index, before compression.

    Args:
      path: of the file, ending in .npz.
      outcomes: of `evaluate`, at least one; all are of the same images.
    """
    arrays = {INDEX: _smallest(outcomes[0].index), LABEL: _smallest(outcomes[0].label)}
    for one in outcomes:
        key = f"{one.condition}{SEPARATOR}{one.policy.label}"
        arrays[key] = _smallest(one.rank)
        arrays[key + PREDICTED] = _smallest(one.predicted)
    with whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _cell(key: str) -> Cell:
    condition, _, policy = key.partition(SEPARATOR)
    return condition, policy


def _smallest(values: np.ndarray) -> np.ndarray:
    return values.astype(np.min_scalar_type(values.max(initial=0)))
