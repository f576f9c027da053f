"""A source whose classes are some of those that a model knows."""

from collections.abc import Sequence
from typing import Any

from bvit.data.imagenet import readable
from bvit.data.sources import Source


class Relabelled:
    """A source whose labels are a model's: each of its classes is one that the model knows.

    Attributes:
      class_names: the model's.
      num_classes: how many there are.
    """

    def __init__(self, source: Source, class_names: Sequence[str]) -> None:
        """Finds each class of the source among the model's.

        Args:
          source: its classes have the model's names, or the English ones of ImageNet's WordNet
            ids, with spaces or with underscores. Where the model's are only numbered and the source
            has as many, with names, they are taken in their order.
          class_names: of the model, in the order of its logits.

        Raises:
          ValueError: a class of the source is not among them.
        """
        self._source = source
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        numbers = {readable(name).replace(" ", "_"): i for i, name in enumerate(class_names)}
        numbers |= {name: i for i, name in enumerate(class_names)}
        names = source.class_names
        numbered = self.class_names == tuple(map(str, range(len(names))))
        if numbered and not numbers.keys() & set(names):
            names = self.class_names
        plain = [name if name in numbers else name.replace(" ", "_") for name in names]
        unknown = [name for name in plain if name not in numbers]
        if unknown:
            raise ValueError(
                f"the model knows {self.num_classes} classes ({', '.join(class_names[:3])}, …), "
                f"and {len(unknown)} of the data's are not among them: {', '.join(unknown[:5])}; "
                "name the class folders as the model names its classes."
            )
        self._labels = [numbers[name] for name in plain]

    def __len__(self) -> int:
        """Number of records."""
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads one record, with the model's label."""
        record = self._source[index]
        return record | {"label": self._labels[record["label"]]}

    def record_name(self, index: int) -> str:
        """The name of a record in messages."""
        return self._source.record_name(index)

    def record_key(self, index: int) -> str:
        """What identifies a record in the source."""
        return self._source.record_key(index)
