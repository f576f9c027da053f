"""Some of the records of a source, as a source."""

from collections.abc import Sequence
from typing import Any

from bvit.data.sources import Source


class Subset:
    """The records of another source at the given indices, in that order."""

    def __init__(self, source: Source, places: Sequence[int]) -> None:
        """Reads nothing yet; `places` are indices into `source`."""
        self._source = source
        self._places = [int(place) for place in places]
        self.num_classes = source.num_classes
        self.class_names = source.class_names

    def __len__(self) -> int:
        """Number of places."""
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record at the place of that number."""
        return self._source[self._places[index]]

    def record_name(self, index: int) -> str:
        """What the source calls it."""
        return self._source.record_name(self._places[index])
