"""A run's answers to each test picture, kept so that runs can be compared picture by picture."""

import dataclasses
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bvit.evaluation.evaluator import EvalResult
from bvit.run_directory import whole

FILE = "answers.npz"
INDEX = "index"
# Between a condition and a policy's label in a key, "region|merge:72": neither contains it.
SEPARATOR = "|"

Cell = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model said of every test picture.

    Attributes:
      index: which test images, ascending, each once; unsigned int [n].
      ranks: (condition, policy's label) → how many classes scored above the true one (0: top-1
        right); unsigned int [n], in the order of `index`.
    """

    index: np.ndarray
    ranks: Mapping[Cell, np.ndarray]


def write(folder: Path, outcomes: Sequence[EvalResult]) -> None:
    """Writes `answers.npz` into a run directory, whole or not at all.

    A picture takes at most a byte for each condition and policy (two with more than 255 classes)
    and four for its index, before they are compressed.

    Args:
      folder: the run directory.
      outcomes: of `evaluate`, at least one; all are of the same pictures.
    """
    arrays = {INDEX: _smallest(outcomes[0].index)}
    for one in outcomes:
        arrays[f"{one.condition}{SEPARATOR}{one.policy.label}"] = _smallest(one.rank)
    with whole(folder / FILE) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read(folder: Path) -> Answers:
    """Reads the answers of a run back.

    Raises:
      ValueError: the run kept none, or the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        raise ValueError(
            f"{folder} holds no {FILE}, as runs of before it was kept: evaluate it again into "
            f"another --workdir, with its own settings (its seed too), "
            f"--config.init_from={folder} --config.init_head=True --config.train.steps=0."
        )
    try:
        with np.load(path) as file:
            arrays = dict(file)
        index = arrays.pop(INDEX)
        if any(rank.shape != index.shape for rank in arrays.values()):
            raise ValueError("its arrays differ in length")
        return Answers(index, {_cell(key): rank for key, rank in arrays.items()})
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error!r}).") from error


def _cell(key: str) -> Cell:
    condition, _, policy = key.partition(SEPARATOR)
    return condition, policy


def _smallest(values: np.ndarray) -> np.ndarray:
    return values.astype(np.min_scalar_type(values.max(initial=0)))
