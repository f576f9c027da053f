"""Some of the records of a source, as a source; and a share of it that is held out."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from bvit.data.sources import Source


class Subset:
    """The records of another source at the given indices, in that order."""

    def __init__(self, source: Source, places: Sequence[int] | Int[np.ndarray, " n"]) -> None:
        """Reads nothing yet; `places` are indices into `source`."""
        self._source = source
        self._places = np.asarray(places, np.int64)
        self.num_classes = source.num_classes
        self.class_names = source.class_names

    def __len__(self) -> int:
        """Number of places."""
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record at the place of that number."""
        return self._source[int(self._places[index])]

    def record_name(self, index: int) -> str:
        """What the source calls it."""
        return self._source.record_name(int(self._places[index]))

    def record_key(self, index: int) -> str:
        """What identifies it in the source."""
        return self._source.record_key(int(self._places[index]))


def hold_out(source: Source, share: float) -> tuple[Subset, Subset]:
    """Divides a source into what is trained on and what is held out, by a hash of each record.

    A record keeps its side whatever the seed, and whatever else is added or removed. The hash is
    not the one that divides a single folder into training and testing, so the two are independent.

    Args:
      source: of `bvit.data.open_source`.
      share: of the records that is held out, in (0, 1); about the same of each class.

    Returns:
      (the rest, what is held out), both in the order of the source.

    Raises:
      ValueError: one of them would be empty.
    """
    digests = (
        hashlib.blake2b(source.record_key(i).encode(errors="surrogateescape"), digest_size=4)
        for i in range(len(source))
    )
    numbers = np.fromiter(
        (int.from_bytes(digest.digest()) for digest in digests), np.uint32, len(source)
    )
    held = numbers < share * 2**32
    if held.all() or not held.any():
        raise ValueError(
            f"data.valid={share:g} of {len(source)} training images leaves "
            f"{'none to train on' if held.all() else 'none to validate on'}: choose another share."
        )
    return Subset(source, np.flatnonzero(~held)), Subset(source, np.flatnonzero(held))
