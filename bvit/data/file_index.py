"""A list of a million files that is small in memory and kept on disk."""

import dataclasses
import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Int, UInt8

from bvit import npz
from bvit.outputs import whole

# What OpenCV or Pillow reads, by extension.
EXTENSIONS = (
    b".jpg",
    b".jpeg",
    b".png",
    b".webp",
    b".bmp",
    b".tif",
    b".tiff",
    b".ppm",
    b".pgm",
    b".gif",
)
# Listing folders is waiting, for a network's file system above all.
SCAN_THREADS = 16
# A folder that changed this recently may change again within the resolution of its clock.
SETTLED_NS = 2 * 10**9
CACHE_FORMAT = 1  # part of the key of a cached list; raise it when the format changes


@dataclasses.dataclass(frozen=True)
class FileIndex:
    """The images of a folder of class folders, in the order of their paths.

    Attributes:
      root: absolute path of the folder.
      class_names: its class folders, sorted; the label of an image is the index of its class.
      names: paths below the class folder, concatenated, in the encoding of the file system.
      ends: where each path ends in `names`, int64 [n].
      labels: int32 [n].
    """

    root: str
    class_names: tuple[str, ...]
    names: UInt8[np.ndarray, " total"]
    ends: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ends)

    def relative_path(self, row: int) -> bytes:
        """CLASS/NAME, with forward slashes."""
        start = self.ends[row - 1] if row else 0
        name = self.names[start : self.ends[row]].tobytes()
        return os.fsencode(self.class_names[self.labels[row]]) + b"/" + name

    def path(self, row: int) -> str:
        """The path of an image."""
        return os.path.join(self.root, os.fsdecode(self.relative_path(row)))


def index_files(root: str) -> FileIndex:
    """Lists the images of a folder of class folders.

    The list is kept in the user's cache ($XDG_CACHE_HOME or ~/.cache), by the absolute path. It is
    valid as long as no folder in it has a new time of modification: adding, removing or renaming an
    image changes that of its folder.

    Args:
      root: absolute path.

    Returns:
      The list.

    Raises:
      ValueError: there are no class folders, or one of them has no images.
    """
    cache = _cache_path(root)
    index = _load(cache, root)
    if index is None:
        index, folders, times = _scan(root)
        if times.max() < time.time_ns() - SETTLED_NS:
            _save(cache, index, folders, times)
    return index


def class_folders(root: str) -> list[str]:
    """Names of the class folders of `root`, sorted.

    Raises:
      ValueError: there are none.
    """
    with os.scandir(root) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
    if not names:
        raise ValueError(
            f"{root!r} must hold one folder of images for each class (such as cat/1.jpg): it "
            "holds no folders; point data.dir at the folder above the classes."
        )
    return sorted(names)


def _scan(root: str) -> tuple[FileIndex, list[str], Int[np.ndarray, " folders"]]:
    """Lists the files; also the folders, and when each was last modified."""
    root_time = os.stat(root).st_mtime_ns  # before listing, so that later changes are noticed
    class_names = class_folders(root)
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        scans = list(pool.map(_scan_class, [os.path.join(root, name) for name in class_names]))
    for name, (names, _, _) in zip(class_names, scans, strict=True):
        if not names:
            raise ValueError(
                f"each class folder must hold images ({_known_extensions()}): there are none in "
                f"{os.path.join(root, name)!r}; add some, or remove the folder."
            )
    counts = [len(lengths) for _, lengths, _ in scans]
    index = FileIndex(
        root=root,
        class_names=tuple(class_names),
        names=np.frombuffer(b"".join(names for names, _, _ in scans), np.uint8),
        ends=np.cumsum(np.concatenate([lengths for _, lengths, _ in scans]), dtype=np.int64),
        labels=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
    )
    folders = [(root, root_time), *(folder for _, _, found in scans for folder in found)]
    paths, times = zip(*folders, strict=True)
    return index, list(paths), np.array(times, np.int64)


def _scan_class(folder: str) -> tuple[bytes, Int[np.ndarray, " n"], list[tuple[str, int]]]:
    """Names of the images below a class folder, concatenated; their lengths; folders and times."""
    top = os.fsencode(folder)
    names, folders, pending = [], [], [b""]
    while pending:
        below = pending.pop()
        path = os.path.join(top, below)
        folders.append((os.fsdecode(path), os.stat(path).st_mtime_ns))
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(b"."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(below + name + b"/")
                elif name.lower().endswith(EXTENSIONS):
                    names.append(below + name)
    names.sort()
    return b"".join(names), np.fromiter(map(len, names), np.int64, len(names)), folders


def _known_extensions() -> str:
    return " ".join(os.fsdecode(extension) for extension in EXTENSIONS)


def _cache_path(root: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    key = hashlib.blake2b(os.fsencode(root), digest_size=16, salt=bytes([CACHE_FORMAT]))
    return Path(cache) / "bvit" / "folders" / f"{key.hexdigest()}.npz"


def _load(cache: Path, root: str) -> FileIndex | None:
    """The cached list, if there is one and it still holds."""
    try:
        arrays = npz.read(cache)
        folders, times = arrays.pop("folders"), arrays.pop("times")
        class_names = tuple(arrays.pop("class_names").tolist())
        index = FileIndex(root=root, class_names=class_names, **arrays)
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError, KeyError) as error:
        logging.warning("The list of images in %s is unusable (%s) and is made anew.", cache, error)
        return None
    return index if np.array_equal(_times(folders.tolist()), times) else None


def _times(folders: Iterable[str]) -> Int[np.ndarray, " folders"]:
    """When each folder was last modified, in ns; 0 for one that is gone."""

    def time_of(folder: str) -> int:
        try:
            return os.stat(folder).st_mtime_ns
        except OSError:
            return 0

    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        return np.array(list(pool.map(time_of, folders)), np.int64)


def _save(
    cache: Path, index: FileIndex, folders: list[str], times: Int[np.ndarray, " folders"]
) -> None:
    arrays = dataclasses.asdict(index)
    del arrays["root"]
    arrays["class_names"] = np.array(index.class_names)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with whole(cache) as partial, partial.open("wb") as file:
            np.savez(file, folders=np.array(folders), times=times, **arrays)
    except OSError as error:  # the list works without its cache
        logging.warning("The list of images could not be cached in %s (%s).", cache, error)
