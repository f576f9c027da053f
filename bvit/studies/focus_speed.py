"""A folder of photographs, end to end: `python -m bvit.focus` beside the usual loop in OpenCV."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from bvit.data.listing import list_images
from bvit.studies.focus_truth import PATCH, read

# 2 megapixels.
WIDTH, HEIGHT = 1632, 1232
QUALITY = 90
DISTINCT = 10


def report(names: Sequence[str], count: int) -> str:
    """Times both over so many JPEGs of 2 megapixels, and returns a table.

    Args:
      names: photographs, which are enlarged.
      count: how many JPEGs.
    """
    files, _ = list_images(names, [])
    with tempfile.TemporaryDirectory() as folder:
        pictures = [
            cv2.resize(read(path), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
            for path in files[:: max(1, len(files) // DISTINCT)][:DISTINCT]
        ]
        for i in range(count):
            pixels = pictures[i % len(pictures)][..., ::-1]
            options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
            cv2.imwrite(str(Path(folder, f"{i:04}.jpg")), pixels, options)
        # In processes of their own: loading and compiling counts.
        command = [sys.executable, "-m", "bvit.focus", "--format=csv", folder]
        seconds = {
            "python -m bvit.focus": _seconds(command),
            "OpenCV, a Laplacian for each patch": _seconds(
                [sys.executable, "-m", "bvit.studies.focus_speed", folder]
            ),
        }
    lines = [f"| {count} JPEGs of {WIDTH}×{HEIGHT} | seconds | images/s |", "| --- | --- | --- |"]
    lines += [f"| {name} | {s:.1f} | {count / s:.1f} |" for name, s in seconds.items()]
    return "\n".join(lines)


def opencv_loop(folder: Path) -> int:
    """The usual loop: the variance of the Laplacian of each patch. Returns how many are blurred."""
    blurred = 0
    for path in sorted(folder.iterdir()):
        grey = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2GRAY)
        variances = [
            cv2.Laplacian(grey[y : y + PATCH, x : x + PATCH], cv2.CV_64F).var()
            for y in range(0, grey.shape[0], PATCH)
            for x in range(0, grey.shape[1], PATCH)
        ]
        blurred += np.mean(np.array(variances) < 100) > 0.5
    return int(blurred)


def _seconds(command):
    start = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # The commands are those of this file, and no shell reads them.
    subprocess.run(command, check=True, **quiet)  # nosec B603
    return time.perf_counter() - start


if __name__ == "__main__":
    print(opencv_loop(Path(sys.argv[1])))
