"""Files that commands write where a person says: never over a file that bvit did not write.

A file of bvit carries a mark. Without it, a file that is already there is left alone, and the
command ends with an error. So a second `--to=report.html` replaces the first one, and no typing
mistake replaces a photograph.
"""

import contextlib
import functools
import io
import itertools
import os
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARK = "Written by bvit, which may replace it"
# The mark stands within so many bytes of the start or of the end of a file.
MARKED_WITHIN = 4096
# Where matplotlib puts a mark, by the format of a figure; it leaves none in other formats.
METADATA = {
    "png": "Software",
    "pdf": "Creator",
    "svg": "Creator",
    "ps": "Creator",
    "eps": "Creator",
}
DEFAULT_FORMAT = "png"
# Text stays text that can be searched and edited in a PDF, as publishers want.
PDF_TEXT = {"pdf.fonttype": 42}
# What the drawings are called that bvit.predict and bvit.focus make of images.
OVERLAY, FOCUS_MAP = ".overlay.jpg", ".focus.png"
VIDEO_OVERLAY = ".overlay.mp4"
DRAWINGS = (OVERLAY, VIDEO_OVERLAY, FOCUS_MAP, ".overlay.png")  # the last is what older ones have
QUALITY = 90  # of JPEGs

# A temporary name takes so much of the name of its file: names end at 255 bytes.
NAME = 50
PARTIAL = ".partial"

Ours = Callable[[Path], bool]


def is_marked(path: Path) -> bool:
    """Whether a file carries the mark of bvit."""
    with path.open("rb") as file:
        found = file.read(MARKED_WITHIN)
        file.seek(max(0, os.fstat(file.fileno()).st_size - MARKED_WITHIN))
        found += file.read(MARKED_WITHIN)
    return MARK.encode() in found


def is_drawing(path: Path) -> bool:
    """Whether a file is a drawing of an image that bvit wrote."""
    return path.name.endswith(DRAWINGS) and path.is_file() and is_marked(path)


def check(path: Path, ours: Ours = is_marked) -> None:
    """Raises an error where `write` would, before work is spent on what is to be written.

    Args:
      path: where to write.
      ours: says of a file whether bvit wrote it; by default, whether it carries the mark.

    Raises:
      ValueError: there is a file that bvit did not write.
      OSError: the folder does not exist, or can't be written to.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file.")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}: make it, or choose another place.")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path.parent} can't be written to: choose another place.")
    if path.is_file() and not ours(path):
        raise ValueError(
            f"{path} exists, and nothing in it says that bvit wrote it: it is kept. Choose another "
            "name, or delete it first."
        )


def write(path: Path, content: bytes, ours: Ours = is_marked) -> None:
    """Writes a file whole or not at all, and never over one that bvit did not write.

    Its permissions are those that the umask gives new files.

    Args:
      path: where to write; a link is followed.
      content: what to write.
      ours: as in `check`.

    Raises:
      ValueError: there is a file that bvit did not write.
      OSError: it can't be written; what was there is kept.
    """
    check(path, ours)
    if path.exists() and not path.is_file():  # /dev/stdout, a pipe
        path.write_bytes(content)
        return
    with whole(Path(os.path.realpath(path)), functools.partial(_place, ours)) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def whole(path: Path, place: Callable[[Path, Path], object] = Path.replace) -> Iterator[Path]:
    """Gives a temporary path to write to, which gets the name `path` once everything is written.

    For files that are bvit's alone, such as those of a run; `write` is for all others.

    Args:
      path: of the file, which is replaced.
      place: gives a temporary file its name.
    """
    partial = _temporary(path)
    try:
        yield partial
        place(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_figure(path: Path, figure: "Figure", dpi: int) -> None:
    """Draws a figure into a file, as `write` writes; the format follows from the name.

    Raises:
      ValueError: as `write`, or there is no such format.
    """
    import matplotlib  # here, since most commands draw nothing with it

    path = path if path.suffix else path.with_suffix(f".{DEFAULT_FORMAT}")
    form = path.suffix[1:].lower()
    metadata = {METADATA[form]: MARK} if form in METADATA else None
    drawn = io.BytesIO()
    with matplotlib.rc_context(PDF_TEXT):
        figure.savefig(drawn, format=form, dpi=dpi, metadata=metadata)
    write(path, drawn.getvalue())


class Drawings:
    """Writes drawings of images into a folder, as NAME.suffix.

    A drawing of an earlier run is replaced. Any other file is kept, as is every image that is
    drawn: the drawing then gets a number.
    """

    def __init__(self, folder: Path, suffix: str, images: Iterable[Path]) -> None:
        """Makes the folder, if there is none.

        Args:
          folder: where to write.
          suffix: of the names of images: `OVERLAY` or `FOCUS_MAP`.
          images: that are drawn.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._suffix = folder, suffix
        self._taken = {found for path in images if (found := _identity(path))}

    def save(self, image: Path, pixels: UInt8[np.ndarray, "h w 3"]) -> Path:
        """Writes the drawing of an image, and returns where."""
        drawn = io.BytesIO()
        if self._suffix.endswith(".png"):
            mark = PngInfo()
            mark.add_text(METADATA["png"], MARK)
            Image.fromarray(pixels).save(drawn, "PNG", pnginfo=mark)
        else:
            Image.fromarray(pixels).save(drawn, "JPEG", quality=QUALITY, comment=MARK)
        path = self._path(image.stem, self._suffix)
        write(path, drawn.getvalue())
        return self._written(path)

    @contextlib.contextmanager
    def video(self, name: str) -> Iterator[tuple[Path, Path]]:
        """For the drawing of a video: where to write it, and the name that it gets at the end.

        Args:
          name: of the video, without its ending.
        """
        path = self._path(name, VIDEO_OVERLAY)
        partial = _temporary(path, path.suffix)  # OpenCV knows the format by it
        try:
            yield partial, path
        finally:  # a stream ends when it is interrupted
            if partial.exists():
                with partial.open("ab") as file:
                    file.write(struct.pack(">I4s", 8 + len(MARK), b"free") + MARK.encode())
                _place(is_marked, partial, path)
                self._written(path)

    def _path(self, stem: str, suffix: str) -> Path:
        return next(filter(self._free, numbered(self._folder, stem, suffix)))

    def _written(self, path: Path) -> Path:
        if written := _identity(path):
            self._taken.add(written)
        return path

    def _free(self, path: Path) -> bool:
        if not os.path.lexists(path):
            return True
        return _identity(path) not in self._taken and is_drawing(path)


def numbered(folder: Path, stem: str, suffix: str) -> Iterator[Path]:
    """NAME.ext, NAME.2.ext, NAME.3.ext and so on, without end."""
    yield folder / f"{stem}{suffix}"
    for count in itertools.count(2):
        yield folder / f"{stem}.{count}{suffix}"


def _identity(path: Path) -> tuple[int, int] | None:
    """What a file has in common with its other names; None if it can't be reached."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _temporary(path: Path, suffix: str = "") -> Path:
    """A new name beside a file's own."""
    return path.with_name(f".{path.name[:NAME]}.{secrets.token_hex(4)}{PARTIAL}{suffix}")


def _place(ours: Ours, partial: Path, path: Path) -> None:
    """Gives a file its name, unless another program's file took it meanwhile."""
    if path.exists():
        check(path, ours)
        partial.replace(path)
        return
    try:
        os.link(partial, path)
    except FileExistsError as error:
        raise ValueError(
            f"another program wrote {path} meanwhile: it is kept. Choose another name."
        ) from error
    except OSError:  # a file system without hard links
        with path.open("xb") as file:
            file.write(partial.read_bytes())
    partial.unlink()
