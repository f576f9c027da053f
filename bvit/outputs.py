"""Files that commands write where a person says: never over a file that bvit did not write.

A file of bvit carries a mark. Without it, a file that is already there is left alone, and the
command ends with an error. So a second `--to=report.html` replaces the first one, and no typing
mistake replaces a photograph.
"""

import io
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

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
# What the overlays of bvit.predict are called.
OVERLAY = ".overlay.png"

# A temporary name takes so much of the name of its file: names end at 255 bytes.
NAME = 50

Ours = Callable[[Path], bool]


def is_marked(path: Path) -> bool:
    """Whether a file carries the mark of bvit."""
    with path.open("rb") as file:
        found = file.read(MARKED_WITHIN)
        file.seek(max(0, os.fstat(file.fileno()).st_size - MARKED_WITHIN))
        found += file.read(MARKED_WITHIN)
    return MARK.encode() in found


def is_overlay(path: Path) -> bool:
    """Whether a file is an overlay that bvit.predict wrote."""
    return path.name.endswith(OVERLAY) and path.is_file() and is_marked(path)


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
    path = Path(os.path.realpath(path))
    partial = _free(path)
    try:
        with partial.open("xb") as file:
            file.write(content)
        if path.exists():
            check(path, ours)
            partial.replace(path)
        else:
            _move(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_figure(path: Path, figure: "Figure", dpi: int) -> None:
    """Draws a figure into a file, as `write` writes; the format follows from the name.

    Raises:
      ValueError: as `write`, or there is no such format.
    """
    path = path if path.suffix else path.with_suffix(f".{DEFAULT_FORMAT}")
    form = path.suffix[1:].lower()
    metadata = {METADATA[form]: MARK} if form in METADATA else None
    drawn = io.BytesIO()
    figure.savefig(drawn, format=form, dpi=dpi, metadata=metadata)
    write(path, drawn.getvalue())


def _free(path: Path) -> Path:
    """The name of a temporary file beside another."""
    return path.with_name(f".{path.name[:NAME]}.{secrets.token_hex(4)}.partial")


def _move(partial: Path, path: Path) -> None:
    """Gives a file its name, unless another file took it meanwhile."""
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
