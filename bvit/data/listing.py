"""Image files that a user names, by paths, folders and patterns; read ahead of their use."""

import dataclasses
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from bvit.data.blur_width import blur_width
from bvit.data.decode import Pixels, UnreadableImageError, center_crop, decode_grey
from bvit.data.file_index import EXTENSIONS
from bvit.outputs import is_drawing

STDIN = "-"


def list_images(names: Iterable[str], stdin: Iterable[str]) -> tuple[list[Path], dict[str, str]]:
    """The files that names stand for, in order.

    Args:
      names: a file is taken as it is; of a folder, all images in it and below it, by their
        extensions, without what is hidden; anything else is a pattern such as "shots/**/*.jpg".
        Folders and patterns leave out the drawings that bvit wrote. "-" stands for the
        names in `stdin`.
      stdin: more names, one a line.

    Returns:
      (files, failures), failures being name → reason.
    """
    files, failures = [], {}
    for name in _expanded(names, stdin):
        found = [Path(name)]
        if os.path.isdir(name):
            found = _below(name)
        elif not os.path.exists(name):
            found = sorted(Path(match) for match in glob.glob(name, recursive=True))
            found = [path for path in found if path.is_file() and not is_drawing(path)]
        if not found:
            failures[name] = "no image in it" if os.path.isdir(name) else "no such file"
        files += found
    return files, failures


def _expanded(names: Iterable[str], stdin: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name == STDIN:
            yield from filter(None, (line.rstrip("\r\n") for line in stdin))
        else:
            yield name


def _below(folder: str) -> list[Path]:
    found = []
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(top, name)
            for name in sorted(names)
            if not name.startswith(".")
            and os.fsencode(name.lower()).endswith(EXTENSIONS)
            and not is_drawing(Path(top, name))
        ]
    return found


@dataclasses.dataclass(frozen=True)
class Photograph:
    """What is used of an image file.

    Attributes:
      crop: the middle, uint8 [image_size, image_size, 3].
      blur_width: of the whole file, see `bvit.data.blur_width`.
    """

    crop: Pixels
    blur_width: float | None


def read_ahead(
    paths: Sequence[Path],
    group: int,
    *,
    image_size: int,
    short_side: int,
    interpolation: str = "bilinear",
) -> Iterator[list[tuple[Path, Photograph | UnreadableImageError]]]:
    """Reads files in threads, one group ahead.

    Args:
      paths: the files.
      group: files in a group; the last group has the rest.
      image_size: side of the central square that is cut out, in pixels.
      short_side: of the image before that, in pixels.
      interpolation: as in `bvit.data.decode.center_crop`.

    Yields:
      For each file of a group, what is used of it, or the error.
    """

    def read(path: Path) -> tuple[Path, Photograph | UnreadableImageError]:
        try:
            image = path.read_bytes()
            crop = center_crop(
                image, size=image_size, short_side=short_side, interpolation=interpolation
            )
            return path, Photograph(crop, blur_width(decode_grey(image)))
        except UnreadableImageError as error:
            return path, error
        except OSError as error:
            return path, UnreadableImageError(error.strerror)

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        waiting: list[Future] = []
        for start in range(0, len(paths), group):
            ahead = [pool.submit(read, path) for path in paths[start : start + group]]
            if waiting:
                yield [future.result() for future in waiting]
            waiting = ahead
        if waiting:
            yield [future.result() for future in waiting]
    finally:
        pool.shutdown(cancel_futures=True)
