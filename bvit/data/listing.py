"""Image files that a user names, by paths, folders and patterns; read ahead of their use."""

import dataclasses
import glob
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2

from bvit.data.blur_width import blur_width
from bvit.data.decode import Pixels, UnreadableImageError, decode, decode_grey
from bvit.data.file_index import EXTENSIONS
from bvit.data.preprocessing import Preprocessing
from bvit.data.video import is_video, read_frames
from bvit.outputs import is_drawing

STDIN = "-"
# What phones write. AVIF and HEIC are listed even where they can't be read, so that they are
# reported.
HEIC = (b".heic", b".heif")
NEEDS_HEIF = "not readable; for HEIC, pip install pillow-heif"
LISTED = (*EXTENSIONS, b".avif", *HEIC)


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
            and os.fsencode(name.lower()).endswith(LISTED)
            and not is_drawing(Path(top, name))
        ]
    return found


@dataclasses.dataclass(frozen=True)
class Photograph:
    """What is used of an image file, or of a frame of a video.

    Attributes:
      name: of the file or stream.
      frame: the number of the frame, from 0; None for an image file.
      crop: what the model is given, uint8 [image_size, image_size, 3].
      blur_width: of the whole image, see `bvit.data.blur_width`.
      pixels: of the frame, if they are to be kept; those of a file can be read again.
    """

    name: str
    frame: int | None
    crop: Pixels
    blur_width: float | None
    pixels: Pixels | None = None


Found = Photograph | tuple[str, UnreadableImageError]


def read_ahead(
    names: Iterable[str], group: int, preprocess: Preprocessing, *, keep_frames: bool = False
) -> Iterator[list[Found]]:
    """Reads images and the frames of videos, one group ahead; threads crop and measure them.

    Args:
      names: of files and streams.
      group: images in a group; the last group has the rest.
      preprocess: how images are prepared for the model.
      keep_frames: whether to keep the pixels of the frames of videos.

    Yields:
      A group: what is used of each image, or the name of a file and why it can't be read.
    """

    def of_file(name: str) -> Found:
        is_heic = os.fsencode(name.lower()).endswith(HEIC)
        try:
            data = Path(name).read_bytes()
            if preprocess.interpolation == "bicubic":  # from all of its pixels
                return of_pixels(name, None, decode(data))
            return Photograph(name, None, preprocess.crop(data), blur_width(decode_grey(data)))
        except UnreadableImageError as error:
            return name, UnreadableImageError(NEEDS_HEIF) if is_heic else error
        except OSError as error:
            return name, UnreadableImageError(error.strerror)

    def of_pixels(name: str, frame: int | None, pixels: Pixels) -> Photograph:
        width = blur_width(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
        kept = pixels if keep_frames and frame is not None else None
        return Photograph(name, frame, preprocess.crop(pixels), width, kept)

    def submitted() -> Iterator[Future[Found]]:
        for name in names:
            if not is_video(name):
                yield pool.submit(of_file, name)
                continue
            try:
                for number, frame in enumerate(read_frames(name)):
                    yield pool.submit(of_pixels, name, number, frame)
            except UnreadableImageError as error:
                yield pool.submit(tuple, (name, error))

    pool = ThreadPoolExecutor(os.cpu_count())
    futures = submitted()
    try:
        waiting: list[Future[Found]] = []
        while ahead := list(itertools.islice(futures, group)):
            if waiting:
                yield [future.result() for future in waiting]
            waiting = ahead
        if waiting:
            yield [future.result() for future in waiting]
    finally:
        futures.close()
        pool.shutdown(cancel_futures=True)
