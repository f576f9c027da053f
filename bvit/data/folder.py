"""Class folders of images, as people keep ImageNet."""

import fnmatch
import os
import zlib
from pathlib import Path

import numpy as np

from bvit.data.file_index import FileIndex, class_folders, index_files

TRAIN_FOLDER = "train"
# The first of these that exists; ImageNet's `test` has no labels, so `val` comes first.
TEST_FOLDERS = ("val", "validation", "test")
# Where there are no such folders, the share of the images that is kept for testing.
TEST_SHARE = 0.1


class FolderSource:
    """Images in one folder for each class, which has the name of the class.

    Either `dir/train/CLASS/*` and `dir/val/CLASS/*` (or `validation`, or `test`; to test, that one
    is enough), or `dir/CLASS/*`
    alone: then a tenth of the images is for testing, by a hash of their path below `dir`, so that
    an image keeps its split when others are added or removed. Images may lie in deeper folders too.
    Hidden files and folders, and files that are not images by their extension, are skipped. Classes
    and the images of a class are sorted by name.

    Attributes:
      class_names: the names of the class folders.
      num_classes: how many there are.
    """

    def __init__(
        self, split: str, *, dir: str | os.PathLike[str], name: str = "", exclude: str = ""
    ) -> None:
        """Lists the images, from a cache if nothing has changed; reads none.

        Args:
          split: "train", "test", or "all": as "test", but one folder is not divided.
          dir: the folder.
          name: of the folder in it that holds the split; "" is train, or the first of val,
            validation and test.
          exclude: a pattern of file names to leave out, as "copy_*"; "" leaves out none. A class
            of which nothing is left stays a class.

        Raises:
          ValueError: there is no such folder, it has no class folders, one of them has no images,
            or the classes of training and testing differ.
        """
        if split not in ("train", "test", "all"):
            raise ValueError(f"folder has the splits train, test and all: got {split!r}.")
        divided = split != "all"
        if not divided:
            split = "test"
        root = os.path.abspath(dir)
        if not os.path.isdir(root):
            raise ValueError(f"data.dir must be a folder of images: there is no folder {root!r}.")
        parts = _parts(root, split, name)
        self._index = index_files(parts.get(split, root))
        self._rows = _hashed_rows(self._index, split) if divided and not parts else None
        if exclude:
            self._rows = _rows_without(exclude, self._index, self._rows)
        if not len(self):
            raise ValueError(
                f"no image of {root!r} falls into the {split} split, there are only "
                f"{len(self._index)}"
                + (f", and data.exclude={exclude!r} leaves some out" if exclude else "")
                + "; add images, or make the folders train and val."
            )
        self.class_names: tuple[str, ...] = self._index.class_names
        self.num_classes: int = len(self.class_names)

    def __len__(self) -> int:
        """Images of the split."""
        return len(self._index) if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> dict[str, bytes | int]:
        """Reads image `index`: {"image": bytes of the file, "label": int}.

        Raises:
          OSError: the file can't be read.
        """
        row = self._row(index)
        return {
            "image": Path(self._index.path(row)).read_bytes(),
            "label": int(self._index.labels[row]),
        }

    def record_name(self, index: int) -> str:
        """The path of image `index`."""
        return self._index.path(self._row(index))

    def record_key(self, index: int) -> str:
        """CLASS/NAME of image `index`."""
        return os.fsdecode(self._index.relative_path(self._row(index)))

    def _row(self, index: int) -> int:
        return index if self._rows is None else int(self._rows[index])


def _parts(root: str, split: str, name: str) -> dict[str, str]:
    """Split → folder; empty if one folder is to be divided. To test, `val` alone is enough."""
    names = {"train": (TRAIN_FOLDER,), "test": TEST_FOLDERS} | ({split: (name,)} if name else {})
    train = os.path.join(root, *names["train"])
    tests = [os.path.join(root, one) for one in names["test"]]
    tests = [path for path in tests if os.path.isdir(path)]
    if name and not os.path.isdir(os.path.join(root, name)):
        raise ValueError(
            f"there is no folder {name!r} in {root!r}: data.train_split, data.valid and "
            "data.test_split name folders in data.dir; correct the name, or leave it out."
        )
    if not os.path.isdir(train) and not tests:
        return {}
    if split == "test" and tests and not os.path.isdir(train):
        return {"test": tests[0]}
    if not os.path.isdir(train) or not tests:
        missing = f"{TRAIN_FOLDER}/" if tests else "val/"
        raise ValueError(
            f"{root!r} must hold train/ and val/ (or test/), or the class folders themselves: "
            f"{missing} is missing; add it, or set data.dir to the folder of class folders."
        )
    _check_same_classes(train, tests[0])
    return {"train": train, "test": tests[0]}


def _check_same_classes(train: str, test: str) -> None:
    ours, theirs = set(class_folders(train)), set(class_folders(test))
    if ours != theirs:
        examples = ", ".join(sorted(ours ^ theirs)[:3])
        raise ValueError(
            f"training and testing must have the same class folders: {len(ours - theirs)} are only "
            f"in {train!r} and {len(theirs - ours)} only in {test!r} (among them {examples})."
        )


def _hashed_rows(index: FileIndex, split: str) -> np.ndarray:
    """The rows of a split, int64, by a checksum of each path: no seed and no state."""
    share = np.fromiter(
        (zlib.crc32(index.relative_path(row)) for row in range(len(index))), np.uint32, len(index)
    )
    is_test = share < TEST_SHARE * 2**32
    return np.flatnonzero(is_test if split == "test" else ~is_test)


def _rows_without(pattern: str, index: FileIndex, rows: np.ndarray | None) -> np.ndarray:
    """Of some rows, or all, those whose file names do not match a pattern; int64."""
    kept = range(len(index)) if rows is None else rows
    names = (os.path.basename(index.relative_path(row)) for row in kept)
    matches = np.array([fnmatch.fnmatchcase(os.fsdecode(name), pattern) for name in names], bool)
    return np.asarray(kept, np.int64)[~matches]
