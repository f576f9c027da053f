"""Data sets by name: records with labels that can be read in any order."""

import os
from typing import Any, Protocol, runtime_checkable

from bvit.data.folder import FolderSource
from bvit.data.photos import Photos
from bvit.data.tfds import TfdsSource

# Names of the splits of the photographs, which have no parts.
WHOLE_SPLITS = ("", "train", "val", "validation", "test")
# In place of a folder's name: all images that are not for training.
ALL = "all"
# The splits of a tfds set. If it has both test splits, the labels of "test" are mostly secret.
TFDS_SPLITS = {"train": ("train",), "test": ("validation", "test")}


@runtime_checkable
class Source(Protocol):
    """Records that can be read in any order, from several threads, and pickled for workers."""

    num_classes: int
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of records."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads one: {"image": bytes of a file or uint8 [h, w, 3], "label": int}."""

    def record_name(self, index: int) -> str:
        """Its name in messages: its path, if it has one."""

    def record_key(self, index: int) -> str:
        """What identifies it wherever the data lie: its path below their folder, or its number."""


def open_source(
    name: str,
    *,
    split: str,
    dir: str | os.PathLike[str] | None = None,
    split_name: str = "",
    image_size: int = 224,
    seed: int = 0,
    exclude: str = "",
) -> Source:
    """Opens one split of a data set; reads no image.

    Args:
      name: "photos" (embedded, see `bvit.data.photos`), "folder" (class folders of images, see
        `bvit.data.folder`), or the name of a tfds set, such as "imagenet2012".
      split: "train" or "test".
      dir: folder: where the class folders are; tfds: its data directory, None for its default.
      split_name: tfds: the split or the part of one to use, such as "train[:20%]"; folder: the
        folder below `dir`, or "all", to test on every image that is not in a folder "train". "" is
        train, or the validation set, or the test set if there is no validation set. The photographs
        take only the name of a whole split, or "".
      image_size: photos: side of the square that the model sees, in pixels.
      seed: photos: of the training crops.
      exclude: folder: a pattern of file names to leave out.

    Returns:
      The source.

    Raises:
      ValueError: there is no such data set, or it is not what its source asks for.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test: got {split!r}.")
    if name == "photos" and split_name not in WHOLE_SPLITS:
        raise ValueError(
            f"photos has no parts of splits: got {split_name!r}; leave data.{split}_split as it "
            "is, or use a tfds set."
        )
    if exclude and name != "folder":
        raise ValueError(
            f"data.exclude is for data.name=folder: got {exclude!r} with {name}; leave it out."
        )
    if name == "photos":
        return Photos(split, image_size=image_size, seed=seed)
    if name == "folder":
        if dir is None:
            raise ValueError("folder needs data.dir, the folder that the class folders are in.")
        if split == "test" and split_name == ALL:
            return FolderSource(ALL, dir=dir, exclude=exclude)
        return FolderSource(split, dir=dir, name=split_name, exclude=exclude)
    return TfdsSource(name, split_name or TFDS_SPLITS[split], dir=dir)


def have_common_records(one: Source, other: Source) -> bool:
    """Whether two splits of a data set are the same one, or parts of one that overlap."""
    if isinstance(one, TfdsSource) and isinstance(other, TfdsSource):
        return one.overlaps(other)
    return one.record_name(0) == other.record_name(0)
