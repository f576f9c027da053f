"""Where an image is in focus, as a probability: from a dozen local measures and their surroundings.

Three steps: energies of detail in cells of 8×8 pixels (`bvit.image.evidence`), the log-odds that a
cell is in focus (a logistic regression on the measures and their squares), and a mean over
neighbours of like brightness, in which cells count by how much there is to see in them.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from bvit.image.batching import map_images
from bvit.image.evidence import (
    CELL,
    MEAN,
    WIDE,
    cell_energies,
    measures,
    noise_variance,
    pad_to_cells,
)
from bvit.image.focus import WHITE
from bvit.image.pixels import check_image, grayscale


class Weights(NamedTuple):
    """Of the logistic regression. A cell's own log-odds are bias + Σ linear · x + square · x².

    Attributes:
      bias: the log-odds where all measures are 0.
      linear: of each of the `MEASURES`.
      square: of the square of each.
      own: the share of a cell's own log-odds in what it ends with.
      neighbours: the share of its neighbours' mean.
    """

    bias: float
    linear: tuple[float, ...]
    square: tuple[float, ...]
    own: float
    neighbours: float


# Printed by `python -m bvit.studies.focus fit`; docs/focus.md has the whole command and the data.
# fmt: off
FITTED = Weights(
    bias=-9.3651,
    linear=(
        -0.49372, -0.19206, -6.1778, 0.38282, 5.5337, 2.0402,
        0.030183, 3.0588, 0.11586, 0.90839, 1.1598, 0.091189,
    ),
    square=(
        0.19492, 0.047991, 0.28716, 0.11889, -0.24387, -0.16217,
        -0.0088608, 0.17274, 0.026085, -0.31847, -0.1572, -0.51251,
    ),
    own=0.1605,
    neighbours=1.018,
)
# fmt: on

# One cell's log-odds never say more than this, 1 in 3,000: no measure was fitted beyond.
MOST = 8.0
# A cell counts by the share of its structure above this variance (squared grey levels) and so many
# noise variances.
SEEN, SEEN_NOISE = 20.0, 3.67
# There is no detail in a cell whose structure is far below this variance and the noise's.
FLAT, FLAT_NOISE = 1.0, 0.22
# Neighbours count by a Gaussian of this many cells up to this distance, and the less the more grey
# levels they differ by: at this many, 0.64. Their mean shrinks to 0 where they weigh less in all
# than the last.
NEAR_CELLS, ALIKE_LEVELS, NEIGHBOUR_RADIUS, LEAST_WEIGHT = 2.0, 15.0, 3, 0.5
# Cells further away than this have no influence, apart from the noise: the window of the widest
# measure, and then that of the neighbours.
CONTEXT = WIDE[1] + NEIGHBOUR_RADIUS


def focus_map(
    image: Float[ArrayLike, "*b h w c"], *, patch_size: int = 16
) -> Float[Array, "*b rows columns"]:
    """How probably each patch is in focus.

    A logistic regression on a dozen local measures: energies of gradients and of the Laplacian at
    three scales, their ratios along the direction in which they are least (a camera's motion blurs
    along one direction alone), the local contrast and the noise. It was fitted to pairs of
    photographs that are focused near and far, hand-drawn maps, and photographs blurred on purpose
    (`FITTED`, and docs/focus.md with what it was measured on). The ratios are after Zhuo and Sim
    2011, "Defocus map estimation from a single image"; the noise after Donoho and Johnstone 1994.

    A patch without detail gets 0.5: a clear sky looks the same in and out of focus. The
    measures look about 50 pixels around a patch, its neighbours' answers another 30. The noise is
    estimated over the whole image.

    Args:
      image: grey or RGB in [0, 1] as a screen shows them (not linear light), of any height and
        width, with any leading batch axes.
      patch_size: side of the square patches in pixels; static. It need not divide the image: the
        last row and column of patches are then cut by the border. 1 gives each pixel a value,
        interpolated between cells of 8 pixels; below 8 nothing gets finer.

    Returns:
      [*b, ceil(h / patch_size), ceil(w / patch_size)], float32 in [0, 1]: the probability that the
      patch is in focus, 0.5 where there is no detail. Differentiable by the image.

    Raises:
      ValueError: not an image, or no patch size.
    """
    check_image(image)
    check_map_patch_size(patch_size)
    return _focus_map(jnp.asarray(image), patch_size=int(patch_size))


def check_map_patch_size(patch_size: int) -> None:
    """Raises ValueError if patches have no such side."""
    if not isinstance(patch_size, (int, np.integer)) or patch_size < 1:
        raise ValueError(f"patch_size must be an integer >= 1: got {patch_size}; use 16.")


@partial(jax.jit, static_argnames="patch_size")
def _focus_map(image: Array, *, patch_size: int) -> Array:
    return map_images(partial(_map_one, patch_size=patch_size), image)


def _map_one(image: Array, *, patch_size: int) -> Array:
    grey = grey_levels(image)
    cells = cell_energies(pad_to_cells(grey))
    valid = jnp.ones(cells.shape[1:], bool)
    log_odds = cell_log_odds(cells, valid, noise_variance(cells, valid))
    return jax.nn.sigmoid(cells_to_patches(log_odds, grey.shape, patch_size))


def grey_levels(image: Float[Array, "h w c"]) -> Float[Array, "h w"]:
    """One image's grey from 0 to 255, float32."""
    image = image.astype(jnp.float32)
    return WHITE * (image[..., 0] if image.shape[-1] == 1 else grayscale(image))


def cell_log_odds(
    cells: Float[Array, "channels m n"],
    valid: Bool[Array, "m n"],
    noise: Float[Array, ""],
    weights: Weights = FITTED,
) -> Float[Array, "m n"]:
    """The log-odds that each cell is in focus; 0 without detail.

    Args:
      cells: from `cell_energies`.
      valid: which cells are part of the image.
      noise: from `noise_variance`.
      weights: of the regression.
    """
    found, structure = measures(cells, valid, noise)
    own, mean = both_log_odds(found, structure, valid, cells[MEAN], noise, weights)
    return weights.own * own + weights.neighbours * mean


def both_log_odds(
    found: Float[Array, "measures m n"],
    structure: Float[Array, "m n"],
    valid: Bool[Array, "m n"],
    mean: Float[Array, "m n"],
    noise: Float[Array, ""],
    weights: Weights,
) -> tuple[Float[Array, "m n"], Float[Array, "m n"]]:
    """Each cell's own log-odds and its neighbours' mean, both 0 without detail.

    Args:
      found: the `MEASURES` of each cell.
      structure: the variance of what there is to see, from `measures`.
      valid: which cells are part of the image.
      mean: grey level of each cell.
      noise: from `noise_variance`.
      weights: of the regression.
    """
    own = jnp.clip(own_log_odds(found, weights), -MOST, MOST)
    weight = valid * structure / (structure + SEEN + SEEN_NOISE * noise)
    seen = structure / (structure + FLAT + FLAT_NOISE * noise)
    return seen * weight * own, seen * neighbours_mean(own, weight, mean)


def own_log_odds(found: Float[Array, "measures m n"], weights: Weights) -> Float[Array, "m n"]:
    """The log-odds of each cell by its measures alone."""
    # By Horner's rule and a sum: as a product of matrices, an accelerator would round it.
    terms = zip(weights.linear, weights.square, found, strict=True)
    return weights.bias + sum((square * x + linear) * x for linear, square, x in terms)


def neighbours_mean(
    own: Float[Array, "m n"], weight: Float[Array, "m n"], mean: Float[Array, "m n"]
) -> Float[Array, "m n"]:
    """The mean log-odds of neighbours of like brightness, shrunk to 0 where little is seen.

    A bilateral filter (Tomasi and Manduchi 1998), along columns and then along rows, as Pham and
    van Vliet 2005 separate it, "Separable bilateral filtering for fast video preprocessing".

    Args:
      own: of each cell.
      weight: by which each counts.
      mean: grey level of each.
    """
    radius = NEIGHBOUR_RADIUS
    evidence, heavy = own * weight, weight
    for axis in (0, 1):
        padding = [(radius, radius) if i == axis else (0, 0) for i in range(2)]
        padded = [lax.optimization_barrier(jnp.pad(x, padding)) for x in (evidence, heavy, mean)]
        evidence, heavy = jnp.zeros_like(own), jnp.zeros_like(own)
        for distance in range(-radius, radius + 1):
            near = float(np.exp(-0.5 * (distance / NEAR_CELLS) ** 2))
            start = radius + distance
            theirs = (
                lax.slice_in_dim(x, start, start + x.shape[axis] - 2 * radius, axis=axis)
                for x in padded
            )
            their_evidence, their_weight, level = theirs
            alike = near / jnp.square(1 + jnp.square(level - mean) / (4 * ALIKE_LEVELS**2))
            evidence, heavy = evidence + alike * their_evidence, heavy + alike * their_weight
    return evidence / (heavy + LEAST_WEIGHT)


def cells_to_patches(
    x: Float[Array, "m n"], shape: tuple[int, ...], patch_size: int
) -> Float[Array, "rows columns"]:
    """Means over patches of a map of cells, interpolated linearly where patches are smaller.

    Args:
      x: a value for each cell.
      shape: height and width of the image in pixels.
      patch_size: side of the patches in pixels.
    """
    rows, columns = (
        resampling(side, count, patch_size) for side, count in zip(shape, x.shape, strict=True)
    )
    highest = lax.Precision.HIGHEST
    x = jnp.matmul(jnp.asarray(rows, x.dtype), x, precision=highest)
    return jnp.matmul(x, jnp.asarray(columns.T, x.dtype), precision=highest)


def resampling(side: int, count: int, patch_size: int) -> Float[np.ndarray, "patches cells"]:
    """Weights of the cells in each patch along one axis; each row sums to 1.

    A patch at least as large as a cell takes cells by the pixels that they share; a smaller one
    interpolates between the two cells next to its middle.

    Args:
      side: of the image in pixels.
      count: of its cells.
      patch_size: side of the patches in pixels.
    """
    start = np.arange(0, side, patch_size)
    end = np.minimum(start + patch_size, side)
    if patch_size >= CELL:
        low = np.arange(count) * CELL
        shared = np.minimum(end[:, None], low + CELL) - np.maximum(start[:, None], low)
        shared = np.maximum(shared, 0).astype(np.float64)
        return shared / shared.sum(1, keepdims=True)
    place = np.clip((start + end) / 2 / CELL - 0.5, 0, count - 1)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(count)), 0)
