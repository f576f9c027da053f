"""Draws over a photograph, at its full size, what a model computed and found, with a legend."""

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
from jaxtyping import Int
from PIL import Image, ImageDraw, ImageFont

from bvit.data.decode import Pixels, decode
from bvit.data.listing import Photograph
from bvit.data.preprocessing import Preprocessing
from bvit.data.video import VideoFile, frame_rate
from bvit.outputs import OVERLAY, Drawings
from bvit.report.overlays import DIMMED, patch_of_pixels, shared_edges

DARK, SHARED, SEEN = (77, 77, 77), (26, 204, 230), (255, 255, 255)
LEGEND = {
    DARK: "dark: no token, not computed",
    SHARED: "lines: patches that share a token",
    SEEN: "frame: what the model is given",
}
# The side of a letter and the width of a line, as shares of the photograph's shorter side.
LETTER, LINE = 1 / 28, 1 / 300
LEAST_LETTER = 10
# How dark the strip is on which the text stands; where it would cover more than this share of the
# photograph, it comes below it.
STRIP, MOST_COVERED = 0.35, 0.4

Box = tuple[float, float, float, float]
Color = tuple[int, int, int]


class Words(NamedTuple):
    """A piece of text that is not broken over lines; with a color, an entry of the legend."""

    text: str
    color: Color | None = None


class Overlays:
    """Writes photographs and videos into a folder, with what a model computed and found on them."""

    def __init__(self, folder: Path, names: Iterable[str], preprocess: Preprocessing) -> None:
        """Makes the folder, if there is none.

        Args:
          folder: where to write; see `bvit.outputs.Drawings` for what is replaced there.
          names: of the photographs and videos.
          preprocess: how images were prepared for the model.
        """
        self._drawings = Drawings(folder, OVERLAY, map(Path, names))
        self._preprocess = preprocess
        self._open = contextlib.ExitStack()

    def draw(
        self, photograph: Photograph, row: Mapping[str, Any], where: Int[np.ndarray, "m n"]
    ) -> Path:
        """Draws one photograph, or the next frame of a video; returns the file that has it.

        Args:
          photograph: with its pixels, if it is a frame.
          row: what was found.
          where: as for `annotate`.
        """
        pixels = photograph.pixels
        if pixels is None:
            pixels = decode(Path(photograph.name).read_bytes())
        box = self._preprocess.box(*pixels.shape[:2])
        drawn = annotate(pixels, where, box, _text(row, where.size))
        if photograph.frame is None:
            return self._drawings.save(Path(photograph.name), drawn)
        if photograph.frame == 0:
            self.close()
            stem = Path(photograph.name).stem
            written, self._path = self._open.enter_context(self._drawings.video(stem))
            self._file = VideoFile(written, frame_rate(photograph.name))
            self._open.callback(self._file.close)
        self._file.write(drawn)
        return self._path

    def close(self) -> None:
        """Ends the video that was begun last, if there is one."""
        self._open.close()


def _text(row: Mapping[str, Any], patches: int) -> list[str]:
    sigma = "unknown" if row["sigma"] is None else f"{row['sigma']:.1f} px"
    return [
        f"{row['label']} {row['confidence']:.1%}",
        f"σ {sigma}",
        f"{row['policy']}: {row['tokens']:g} of {patches} tokens",
    ]


def annotate(
    pixels: Pixels, where: Int[np.ndarray, "rows columns"], box: Box, text: Sequence[str]
) -> Pixels:
    """Draws which patches share a token and which no token shows, and writes what was found.

    Args:
      pixels: the photograph, uint8.
      where: the number of the token that shows each patch, -1 for none.
      box: of the patches in the photograph: top, left, height, width in its pixels.
      text: what is written on it, each on one line or on a part of one.

    Returns:
      The photograph at its size; where that is too small for the text, with a strip below for it.
    """
    drawn = pixels.copy()
    height, width = pixels.shape[:2]
    line = max(1, round(LINE * min(height, width)))
    top, left, bottom, right = _whole(box, height, width)
    part = drawn[top:bottom, left:right]
    cells = patch_of_pixels(part.shape[:2], where.shape)
    hidden = (where < 0)[cells]
    part[hidden] = (DIMMED * part[hidden]).astype(np.uint8)
    edge = shared_edges(where, cells)
    part[cv2.dilate(edge.astype(np.uint8), np.ones((line, line), np.uint8)) > 0] = SHARED
    shown = [color for color, seen in ((DARK, hidden.any()), (SHARED, edge.any())) if seen]
    if part.shape[:2] != (height, width):
        cv2.rectangle(drawn, (left, top), (right - 1, bottom - 1), SEEN, line)
        shown.append(SEEN)
    words = [Words(one) for one in text] + [Words(LEGEND[color], color) for color in shown]
    return _with_text(drawn, words)


def _whole(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """A box in whole pixels, as top, left, bottom, right, within the photograph."""
    top, left, down, across = box
    bottom, right = min(height, round(top + down)), min(width, round(left + across))
    return max(0, round(top)), max(0, round(left)), bottom, right


def _with_text(pixels: Pixels, words: Sequence[Words]) -> Pixels:
    """Writes into a strip at the foot of a photograph, or below it where that would hide it."""
    height, width = pixels.shape[:2]
    size = max(LEAST_LETTER, round(LETTER * min(height, width)))
    font, gap = _font(size), size // 2
    lines = _broken(words, font, size, width - 2 * gap)
    strip = len(lines) * (size + gap) + gap
    if strip > MOST_COVERED * height:
        pixels = np.concatenate([pixels, np.zeros((strip, width, 3), np.uint8)])
    pixels[-strip:] = (STRIP * pixels[-strip:]).astype(np.uint8)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    y = len(pixels) - strip + gap
    for line in lines:
        x = gap
        for one in line:
            if one.color:
                draw.rectangle((x, y, x + size, y + size), fill=one.color, outline=SEEN)
                x += size + gap
            draw.text((x, y + size), one.text, fill=SEEN, font=font, anchor="ls")
            x += round(font.getlength(one.text)) + 2 * gap
        y += size + gap
    return np.asarray(image)


def _broken(
    words: Sequence[Words], font: ImageFont.FreeTypeFont, size: int, width: int
) -> list[list[Words]]:
    """Lines of text that fit into a width; what is alone on its line may be too long for it."""
    lines: list[list[Words]] = []
    used = 0.0
    for one in words:
        # A swatch, the text, and a gap on either side.
        long = font.getlength(one.text) + (1.5 * size if one.color else 0) + size
        if not lines or used + long > width:
            lines.append([])
            used = 0.0
        lines[-1].append(one)
        used += long
    return lines


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's: it has Greek letters, and most of those that classes are called by."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, size)
