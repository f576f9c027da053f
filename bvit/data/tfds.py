"""Classification sets of TensorFlow Datasets, read without TensorFlow."""

import difflib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

# tfds has several formats of file; this is the one that it reads at random and without TensorFlow.
FILE_FORMAT = "array_record"


class TfdsSource:
    """A split of a tfds set that has an image and a label, kept in array_record files.

    Attributes:
      class_names: the names of the classes, in the order of their labels.
      num_classes: how many there are.
    """

    def __init__(
        self,
        name: str,
        split: str | tuple[str, ...],
        *,
        dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Opens a prepared set; reads no image.

        Args:
          name: e.g. "imagenet2012", "imagenette/320px-v2", "cifar10".
          split: a split or a part of one, e.g. "validation", "train[:20%]"; of several names, the
            first that the set has.
          dir: where tfds keeps its data; None is $TFDS_DATA_DIR or ~/tensorflow_datasets.

        Raises:
          ValueError: tfds has no such set or it has no such split, it lacks an image or a label, or
            it is not prepared; the message then holds the command that prepares it.
        """
        import tensorflow_datasets as tfds  # here, because other sources can do without it

        self._name, self._dir = name, None if dir is None else os.fspath(dir)
        builder = _builder(name, self._dir)
        choices = (split,) if isinstance(split, str) else split
        split = next((choice for choice in choices if choice in builder.info.splits), choices[0])
        self._split = split
        features = dict(builder.info.features.items())
        if not (
            isinstance(features.get("image"), tfds.features.Image)
            and isinstance(features.get("label"), tfds.features.ClassLabel)
        ):
            raise ValueError(
                "a classification set has the features image (Image) and label (ClassLabel): "
                f"tfds set {name!r} has {', '.join(features)}; choose another."
            )
        try:
            self._records = builder.as_data_source(
                split, decoders={"image": tfds.decode.SkipDecoding()}
            )
        except NotImplementedError:  # prepared, as tfrecord
            raise _not_prepared(name, self._dir) from None
        except ValueError as error:
            raise ValueError(f"tfds set {name!r}: {error}") from None
        self._pieces = [
            (one.filename, one.skip, one.skip + one.take)
            for one in builder.info.splits[split].file_instructions
        ]
        self.num_classes: int = features["label"].num_classes
        self.class_names: tuple[str, ...] = tuple(features["label"].names)

    def __len__(self) -> int:
        """Records of the split."""
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads record `index`: {"image": bytes of the file, "label": int}.

        Raises:
          ValueError: the record has no label, as in the test splits of competitions.
        """
        record = self._records[index]
        label = int(record["label"])
        if label < 0:
            raise ValueError(
                f"{self.record_name(index)} has no label; choose a split that has labels."
            )
        return {"image": record["image"], "label": label}

    def record_name(self, index: int) -> str:
        """The name of record `index` in messages."""
        return f"tfds {self._name}, split {self._split}, record {index}"

    def overlaps(self, other: "TfdsSource") -> bool:
        """Whether the splits of two sources of one set have records in common."""
        return any(
            file == its_file and max(start, its_start) < min(end, its_end)
            for file, start, end in self._pieces
            for its_file, its_start, its_end in other._pieces
        )

    def record_key(self, index: int) -> str:
        """The number of the record in its split."""
        return str(index)

    # A worker process opens the set itself: it may not know the builder's class.
    def __getstate__(self) -> dict[str, Any]:
        """The arguments that open the set again."""
        return {"name": self._name, "split": self._split, "dir": self._dir}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Opens the set again."""
        TfdsSource.__init__(self, **state)


def _builder(name: str, dir: str | None) -> "DatasetBuilder":
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=dir)
    except tfds.core.registered.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name, ["photos", "folder", *known], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see tensorflow.org/datasets/catalog."
        raise ValueError(
            f"data sets are photos, folder and the names of tfds: got {name!r}; {hint}"
        ) from None
    if not builder.is_prepared():
        raise _not_prepared(name, dir)
    return builder


def _not_prepared(name: str, dir: str | None) -> ValueError:
    where = "its default directory" if dir is None else repr(dir)
    return ValueError(
        f"tfds set {name!r} is not prepared as {FILE_FORMAT} in {where}; correct data.dir, or "
        "prepare it once (for which some sets need TensorFlow):\n"
        f'  python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
        f'data_dir={dir!r}, file_format={FILE_FORMAT!r}).download_and_prepare()"'
    )
