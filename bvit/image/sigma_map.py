"""How blurred each patch of an image is: the sigma of a Gaussian, with a confidence.

`bvit.image.sigma.estimate_sigma` solves a model of photographs for it; here it is a regression on
the measures of the focus map, which cost nothing more where that is wanted too.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from bvit.image.batching import map_images
from bvit.image.evidence import cell_energies, measures, noise_variance, pad_to_cells
from bvit.image.focus_map import cells_to_patches, check_map_patch_size, grey_levels
from bvit.image.pixels import check_image


class SigmaWeights(NamedTuple):
    """Of two regressions on the measures and their squares, the constant first in each.

    Attributes:
      log_sigma: the natural logarithm of sigma in pixels.
      confidence: the log-odds that this is right within `TOLERANCE`.
    """

    log_sigma: tuple[float, ...]
    confidence: tuple[float, ...]


class BlurMap(NamedTuple):
    """Of each patch.

    Attributes:
      sigma: in pixels, from `SHARPEST` to `WIDEST`.
      confidence: the probability that it is right within a quarter, or a quarter of a pixel.
    """

    sigma: Float[Array, "*b rows columns"]
    confidence: Float[Array, "*b rows columns"]


# An estimate is right within this share of the true sigma, and this many pixels.
TOLERANCE, TOLERANCE_PIXELS = 0.25, 0.25
# Between these, in pixels, the regression was fitted.
SHARPEST, WIDEST = 0.4, 8.0

# fmt: off
# Printed by `python -m bvit.studies.focus fit`; docs/focus.md has the whole command and the data.
FITTED = SigmaWeights(
    log_sigma=(
        2.1146, 0.031769, 0.29591, 0.12997, 0.41225, -0.0019298,
        0.10036, -0.63611, 0.031236, -0.2105, -0.077133, -0.49568,
        0.55128, -0.013872, -0.026772, -0.020677, -0.0097766, 0.02967,
        -0.031273, 0.034928, -0.16701, -0.054758, 0.12333, 0.0095636,
        0.25,
    ),
    confidence=(
        2.4354, -0.032199, -0.13831, 0.19723, -0.099701, 0.18852,
        0.31735, -0.093571, 0.18669, 0.2881, -0.092362, -1.7726,
        -0.083925, 0.027418, -0.0023121, -0.069692, -0.00013535, 0.012098,
        -0.085985, 0.066688, 0.13157, -0.080608, 0.09223, 0.25509,
        0.11157,
    ),
)
# fmt: on


def blur_map(image: Float[ArrayLike, "*b h w c"], *, patch_size: int = 16) -> BlurMap:
    """Estimates the sigma of the Gaussian that each patch of an image was blurred by.

    A patch is judged with some 50 pixels around it. Noise, gamma and JPEG were part of the
    photographs that the regression was fitted to; docs/focus.md has its errors.

    Args:
      image: grey or RGB in [0, 1], of any height and width, with any leading batch axes.
      patch_size: side of the patches in pixels, as in `focus_map`; static.

    Returns:
      For each patch sigma and a confidence, float32, [*b, ceil(h / patch_size),
      ceil(w / patch_size)]. A flat patch has an estimate too, of little confidence.

    Raises:
      ValueError: not an image, or no patch size.
    """
    check_image(image)
    check_map_patch_size(patch_size)
    return _blur_map(jnp.asarray(image), patch_size=int(patch_size))


@partial(jax.jit, static_argnames="patch_size")
def _blur_map(image: Array, *, patch_size: int) -> BlurMap:
    def one(image: Array) -> BlurMap:
        grey = grey_levels(image)
        cells = cell_energies(pad_to_cells(grey))
        valid = jnp.ones(cells.shape[1:], bool)
        found, structure = measures(cells, valid, noise_variance(cells, valid))
        both = sigma_and_confidence(found, structure)
        return BlurMap(*(cells_to_patches(x, grey.shape, patch_size) for x in both))

    return map_images(one, image)


def sigma_and_confidence(
    found: Float[Array, "measures m n"],
    structure: Float[Array, "m n"],
    weights: SigmaWeights = FITTED,
) -> tuple[Float[Array, "m n"], Float[Array, "m n"]]:
    """Sigma and its confidence of each cell, from its measures and what there is to see."""
    low, high = np.log(SHARPEST), np.log(WIDEST)
    sigma = jnp.exp(jnp.clip(_polynomial(found, weights.log_sigma), low, high))
    seen = structure / (structure + 1)
    return sigma, seen * jax.nn.sigmoid(_polynomial(found, weights.confidence))


def _polynomial(found: Array, weights: Sequence[float]) -> Array:
    count = len(found)
    terms = zip(weights[1 : 1 + count], weights[1 + count :], found, strict=True)
    return weights[0] + sum((square * x + linear) * x for linear, square, x in terms)
