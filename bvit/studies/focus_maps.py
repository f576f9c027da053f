"""Draws where the focus measures differ: python -m bvit.studies.focus_maps [PHOTOS …] --to=FILE

PHOTOS are files, folders or patterns. The default is two of the grey photographs in scikit-image's
package. The right half of each is blurred and a flat wall put into the lower left, once without and
once with sensor noise. Beside it is a map of each focus measure: a patch above the measure's
threshold is blue, and so sharp; one below is red.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from bvit import outputs
from bvit.arguments import EXIT_BAD_INPUT, Parser, fail
from bvit.image.blur import gaussian_blur
from bvit.image.focus import WHITE
from bvit.image.focus_measures import FOCUS_MEASURES, THRESHOLDS
from bvit.image.noise import sensor_noise
from bvit.studies.focus_benchmark import SIDE, load

SIGMA = 3.0
# Grey levels of 255: none, and what a small sensor adds in a dim room.
NOISES = (0.0, 5.0)
WALL = 0.6
# More photographs would be drawn smaller.
MOST = 2
# So many times the threshold, or as small a part of it, has the full colour.
FULL_COLOUR = 8.0


def staged(
    image: Float[Array, "n h w 3"], noise: float, *, patch_size: int
) -> Float[Array, "n h w 3"]:
    """Images with a sharp half, a blurred half, a flat wall in the sharp one, and noise on all.

    Args:
      image: RGB in [0, 1].
      noise: standard deviation in grey levels of 255.
      patch_size: all borders lie between patches of this side.
    """
    height, width = (side // patch_size // 2 * patch_size for side in image.shape[1:3])
    seen = image.at[:, :, width:].set(gaussian_blur(image, SIGMA)[:, :, width:])
    seen = seen.at[:, height:, : width // patch_size // 2 * patch_size].set(WALL)
    return sensor_noise(jax.random.key(0), seen, read=noise / WHITE, shot=0.0)


def draw(image: Float[Array, "n h w 3"], *, patch_size: int) -> Figure:
    """Each staged image, without and with noise, beside the maps of all focus measures."""
    rows = [(one, noise) for one in image for noise in NOISES]
    columns = 1 + len(FOCUS_MEASURES)
    figure = Figure(figsize=(1.5 * columns, 1.5 * len(rows) + 0.3), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    full = np.log(FULL_COLOUR)
    for cells, (one, noise) in zip(grid, rows, strict=True):
        seen = staged(one[None], noise, patch_size=patch_size)
        cells[0].imshow(np.asarray(seen[0]))
        cells[0].set_ylabel(f"noise {noise:g}")
        for cell, (name, measure) in zip(cells[1:], FOCUS_MEASURES.items(), strict=True):
            ratio = np.asarray(measure(seen, patch_size=patch_size)[0]) / THRESHOLDS[name]
            shown = np.log(np.maximum(ratio, 1 / FULL_COLOUR))
            cell.imshow(shown, cmap="RdBu", vmin=-full, vmax=full, interpolation="nearest")
    titles = ("image", *(f"{name}, {THRESHOLDS[name]:g}" for name in FOCUS_MEASURES))
    for cell, title in zip(grid[0], titles, strict=True):
        cell.set_title(title, fontsize=9)
    for cell in grid.flat:
        cell.set(xticks=[], yticks=[])
    return figure


def main(arguments: Sequence[str]) -> None:
    """Draws the photographs that the arguments name."""
    parser = Parser("python -m bvit.studies.focus_maps", __doc__)
    parser.add_argument("--to", required=True, type=Path, metavar="FILE", help="the figure")
    parser.add_argument("--patch_size", type=int, default=16, help="side of the patches")
    parser.add_argument("photos", nargs="*", metavar="PHOTOS", help="files, folders, patterns")
    options = parser.parse_args(arguments)
    try:
        outputs.check(options.to)
        figure = draw(load(options.photos, MOST), patch_size=options.patch_size)
        outputs.write_figure(options.to, figure, dpi=100)
    except (ValueError, OSError) as error:
        fail(str(error), EXIT_BAD_INPUT)
    print(f"{options.to}: {SIDE} px, patches of {options.patch_size}")


if __name__ == "__main__":
    main(sys.argv[1:])
