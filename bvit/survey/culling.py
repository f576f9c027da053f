"""What `python -m bvit.focus` does with files: draws maps, moves pictures. It overwrites nothing
that it did not write itself.
"""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float
from PIL import Image

from bvit.data.decode import Pixels
from bvit.survey.reading import png_bytes

MAP_SUFFIX = ".focus.png"
# A remark in each map, by which it is known again.
SOFTWARE = "bvit.focus"
# Maps are drawn at most so many pixels high and wide.
MAP_SIDE = 1280
# Blurred areas turn to the colour, by up to this share; areas without detail turn grey.
BLURRED_COLOUR, MOST_TINT = (255, 110, 0), 0.75


class Maps:
    """Writes pictures with their blur drawn over them, each under a name of its own."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder, if there is none."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._written: set[Path] = set()

    def write(self, path: Path, pixels: Pixels, probability: Float[np.ndarray, "m n"]) -> Path:
        """Draws one picture; replaces only maps of an earlier run.

        Args:
          path: of the picture; its map is called NAME.focus.png.
          pixels: of the picture.
          probability: that a cell of 8×8 pixels is in focus.

        Returns:
          Where the map is.
        """
        data = png_bytes(draw(pixels, probability), Software=SOFTWARE)
        for place in numbered(self._folder, path.stem, MAP_SUFFIX):
            if place in self._written:
                continue
            try:
                with place.open("xb") as file:
                    file.write(data)
            except FileExistsError:
                if not is_map(place):
                    continue
                partial = place.with_name(f".{place.name}.{os.getpid()}")
                partial.write_bytes(data)
                partial.replace(place)
            self._written.add(place)
            return place
        raise AssertionError("numbers do not end")


class Mover:
    """Moves pictures to a folder, under names that are free there."""

    def __init__(self, folder: Path, dry_run: bool) -> None:
        """Makes the folder, unless nothing is to be moved."""
        self._folder, self._dry_run = folder, dry_run
        self._taken: set[Path] = set()
        if not dry_run:
            folder.mkdir(parents=True, exist_ok=True)

    def move(self, path: Path) -> Path:
        """Moves one picture.

        Returns:
          Where it is, or would be; itself, if it is there already.
        """
        if path.parent.resolve() == self._folder.resolve():
            return path
        for place in numbered(self._folder, path.stem, path.suffix):
            if place in self._taken or (self._dry_run and place.exists()):
                continue
            if not self._dry_run:
                try:
                    place.open("xb").close()  # so that nobody else takes the name meanwhile
                except FileExistsError:
                    continue
                try:
                    shutil.copystat(path, place)
                    try:
                        path.replace(place)
                    except OSError:  # another file system
                        shutil.copy2(path, place)
                        path.unlink()
                except OSError:
                    if path.exists():
                        place.unlink()
                    raise
            self._taken.add(place)
            return place
        raise AssertionError("numbers do not end")


def numbered(folder: Path, stem: str, suffix: str):
    """NAME.ext, NAME.2.ext, NAME.3.ext and so on."""
    yield folder / f"{stem}{suffix}"
    count = 2
    while True:
        yield folder / f"{stem}.{count}{suffix}"
        count += 1


def is_map(path: Path) -> bool:
    """Whether a file is a map that this command wrote."""
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == SOFTWARE
    except Exception:  # Pillow's parsers raise nearly anything on what is no picture
        return False


def draw(pixels: Pixels, probability: Float[np.ndarray, "m n"]) -> Pixels:
    """A picture, scaled down to `MAP_SIDE`, with its blur over it."""
    height, width = pixels.shape[:2]
    shrink = min(1.0, MAP_SIDE / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    # Cells cover a little more than the picture where its sides are no multiples of 8.
    rows = ((np.arange(size[1]) + 0.5) * height / size[1] / 8 - 0.5).astype(np.float32)
    columns = ((np.arange(size[0]) + 0.5) * width / size[0] / 8 - 0.5).astype(np.float32)
    sharp = cv2.remap(
        probability.astype(np.float32),
        *(x.astype(np.float32) for x in np.meshgrid(columns, rows)),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )[..., None]
    grey = small.mean(-1, keepdims=True)
    # Colour where there is detail, grey where there is none; orange the more probably blurred.
    known = np.abs(2 * sharp - 1)
    tint = MOST_TINT * np.clip(1 - 2 * sharp, 0, 1)
    base = known * small + (1 - known) * grey
    drawn = (1 - tint) * base + tint * (0.5 * np.array(BLURRED_COLOUR, np.float32) + 0.5 * grey)
    return np.clip(np.rint(drawn), 0, 255).astype(np.uint8)
