"""What `python -m bvit.focus` does with images: draws maps, moves files, overwrites nothing."""

import shutil
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float

from bvit.data.decode import Pixels
from bvit.outputs import numbered

# Maps are drawn at most so many pixels high and wide.
MAP_SIDE = 1280
# Blurred areas turn to the colour, by up to this share; areas without detail turn grey.
BLURRED_COLOUR, MOST_TINT = (255, 110, 0), 0.75


class Mover:
    """Moves images to a folder, under names that are free there."""

    def __init__(self, folder: Path, dry_run: bool) -> None:
        """Makes the folder, unless nothing is to be moved."""
        self._folder, self._dry_run = folder, dry_run
        self._taken: set[Path] = set()
        if not dry_run:
            folder.mkdir(parents=True, exist_ok=True)

    def move(self, path: Path) -> Path:
        """Moves one image.

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


def draw(pixels: Pixels, probability: Float[np.ndarray, "m n"]) -> Pixels:
    """An image, scaled down to `MAP_SIDE`, with its blur over it."""
    height, width = pixels.shape[:2]
    shrink = min(1.0, MAP_SIDE / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    # Cells cover a little more than the image where its sides are no multiples of 8.
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
