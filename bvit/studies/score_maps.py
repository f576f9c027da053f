"""A picture of where the focus scores differ: python -m bvit.studies.score_maps --to=scores.png

PICTURES are files, folders or patterns; without any, photographs in scikit-image's package are
taken, in grey. The right half of each is blurred and a flat wall put into the lower left, once
without and once with a sensor's noise. Beside it stands what each score says of every patch: blue
is above its threshold, and so sharp, red is below.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from bvit.arguments import EXIT_BAD_INPUT, Parser, fail
from bvit.image.blur import gaussian_blur
from bvit.image.focus import WHITE
from bvit.image.focus_measures import FOCUS_MEASURES, THRESHOLDS
from bvit.image.noise import sensor_noise
from bvit.studies.focus_measures import SIDE, load

SIGMA = 3.0
# Grey levels of 255: none, and what a small sensor adds in a dim room.
NOISES = (0.0, 5.0)
WALL = 0.6
# Of the embedded photographs, these show the difference; more would be smaller.
EMBEDDED = 2
# A score this many times its threshold, or as small a part of it, has the full colour.
FULL_COLOUR = 8.0


def staged(
    image: Float[Array, "n h w 3"], noise: float, *, patch_size: int
) -> Float[Array, "n h w 3"]:
    """Pictures with a sharp half, a blurred half, a flat wall in the sharp one, and noise on all.

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
    """Each staged picture, without and with noise, beside the maps of all scores."""
    rows = [(one, noise) for one in image for noise in NOISES]
    figure = Figure(
        figsize=(1.5 * (1 + len(FOCUS_MEASURES)), 1.5 * len(rows) + 0.3), layout="constrained"
    )
    grid = figure.subplots(len(rows), 1 + len(FOCUS_MEASURES), squeeze=False)
    for cells, (one, noise) in zip(grid, rows, strict=True):
        seen = staged(one[None], noise, patch_size=patch_size)
        cells[0].imshow(np.asarray(seen[0]))
        cells[0].set_ylabel(f"noise {noise:g}")
        for cell, (name, score) in zip(cells[1:], FOCUS_MEASURES.items(), strict=True):
            ratio = np.asarray(score(seen, patch_size=patch_size)[0]) / THRESHOLDS[name]
            full = np.log(FULL_COLOUR)
            shown = np.log(np.maximum(ratio, 1 / FULL_COLOUR))
            cell.imshow(shown, cmap="RdBu", vmin=-full, vmax=full, interpolation="nearest")
    titles = ("picture", *(f"{name}, {THRESHOLDS[name]:g}" for name in FOCUS_MEASURES))
    for cell, title in zip(grid[0], titles, strict=True):
        cell.set_title(title, fontsize=9)
    for cell in grid.flat:
        cell.set(xticks=[], yticks=[])
    return figure


def main(arguments: Sequence[str]) -> None:
    """Draws the pictures that the arguments name."""
    parser = Parser("python -m bvit.studies.score_maps", __doc__)
    parser.add_argument("--to", required=True, type=Path, help="where to write the picture")
    parser.add_argument("--patch_size", type=int, default=16, help="side of the patches")
    parser.add_argument("pictures", nargs="*", metavar="PICTURES", help="files, folders, patterns")
    options = parser.parse_args(arguments)
    try:
        image = load(options.pictures, EMBEDDED)
        figure = draw(jnp.asarray(image), patch_size=options.patch_size)
        figure.savefig(options.to, dpi=100)
    except (ValueError, OSError) as error:
        fail(str(error), EXIT_BAD_INPUT)
    print(f"{options.to}: {SIDE} px, patches of {options.patch_size}")


if __name__ == "__main__":
    main(sys.argv[1:])
