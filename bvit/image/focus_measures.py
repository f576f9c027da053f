"""Focus measures: how much detail each patch holds, to rank patches by.

They agree on photographs that are partly blurred, and differ elsewhere: the variance of the
Laplacian takes noise for sharpness, all but `relative` take a flat wall for blur. High is sharp.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from bvit.image.batching import map_images
from bvit.image.checks import check_name
from bvit.image.focus import PAPER_THRESHOLD, WHITE, laplacian, patch_laplacian_variance
from bvit.image.patches import block_values, check_patch_size, halve
from bvit.image.pixels import check_image, grayscale

FocusMeasure = Callable[..., Float[Array, "*b rows columns"]]

# Bins of the entropy's histogram, 16 grey levels wide: a patch has only a few hundred pixels.
ENTROPY_BINS = 16

# `relative_detail` takes contrast under these for flat: in squared grey levels, and in units of the
# noise variance. Over half-blurred photographs (σ from 1.5 to 3 pixels) the probability that it
# ranks a sharp patch over a blurred one is 0.92 to 0.95 for constants of 0.1 to 30 and 10.
FLAT_VARIANCE = 30.0
FLAT_NOISE_VARIANCES = 10.0
# The quantile of patches, by energy of their finest diagonal detail, that show noise alone.
NOISE_QUANTILE = 0.25


def tenengrad(
    image: Float[ArrayLike, "*b h w 3"], *, patch_size: int
) -> Float[Array, "*b h//{patch_size} w//{patch_size}"]:
    """Gradient energy: the mean of Gx² + Gy² over each patch, by Sobel's 3×3 kernels.

    It responds less to noise and more to strong smooth edges than the Laplacian (Krotkov 1987,
    "Focusing").

    Args:
      image: RGB in [0, 1], any leading batch axes; the border is mirrored without repeating it.
      patch_size: side of the patches in pixels, a divisor of height and width; static.

    Returns:
      [*b, h/p, w/p], float32, in squared 0-255 grey levels times Sobel's gain of 8².

    Raises:
      ValueError: not an RGB image, or patches that do not fit.
    """
    return _measure(image, patch_size, _tenengrad)


def reblur_error(
    image: Float[ArrayLike, "*b h w 3"], *, patch_size: int
) -> Float[Array, "*b h//{patch_size} w//{patch_size}"]:
    """What halving the resolution loses: the mean squared error of scaling down and up again.

    Down by averaging 2×2 pixels, as `merge` does to a blurry block; up by linear interpolation.
    (Crete et al. 2007 also blur again, and compare gradients.)

    Args:
      image: RGB in [0, 1], any leading batch axes; its edge pixels are repeated.
      patch_size: side of the patches in pixels, a divisor of height and width; static.

    Returns:
      [*b, h/p, w/p], float32, in squared 0-255 grey levels.

    Raises:
      ValueError: not an RGB image, or patches that do not fit.
    """
    return _measure(image, patch_size, _reblur_error)


def entropy(
    image: Float[ArrayLike, "*b h w 3"], *, patch_size: int
) -> Float[Array, "*b h//{patch_size} w//{patch_size}"]:
    """Shannon entropy of each patch's histogram of grey levels (16 bins), in bits.

    Sees context rather than focus: blurring an edge does not lower it. Its gradient is 0.

    Args:
      image: RGB in [0, 1], any leading batch axes.
      patch_size: side of the patches in pixels, a divisor of height and width; static.

    Returns:
      [*b, h/p, w/p], float32, from 0 (one grey level) to 4.

    Raises:
      ValueError: not an RGB image, or patches that do not fit.
    """
    return _measure(image, patch_size, _entropy)


def relative_detail(
    image: Float[ArrayLike, "*b h w 3"], *, patch_size: int
) -> Float[Array, "*b h//{patch_size} w//{patch_size}"]:
    """The share of a patch's contrast that is fine detail: robust to noise and to low contrast.

    The variance of the Laplacian of the smoothed image (binomial 3×3), over the variance of the
    image itself. A floor in the denominator, fixed plus a multiple of the noise variance, keeps
    patches of noise alone from ranking high. The noise variance is that of the finest diagonal
    Haar coefficients (Donoho and Johnstone 1994) in the quietest quarter of the patches, so a
    patch's value depends a little on the rest of its image.

    Args:
      image: RGB in [0, 1], any leading batch axes; the border is mirrored without repeating it.
      patch_size: side of the patches in pixels, at least 2, a divisor of height and width; static.

    Returns:
      [*b, h/p, w/p], float32, without unit.

    Raises:
      ValueError: not an RGB image, or patches that do not fit.
    """
    if patch_size < 2:
        raise ValueError(
            f"patch_size must be at least 2 for 'relative' to see noise: got {patch_size}; use "
            "another focus measure."
        )
    return _measure(image, patch_size, _relative_detail)


FOCUS_MEASURES: dict[str, FocusMeasure] = {
    "laplacian": patch_laplacian_variance,
    "tenengrad": tenengrad,
    "reblur": reblur_error,
    "entropy": entropy,
    "relative": relative_detail,
}

# The value from which a patch counts as sharp. The Laplacian's is the paper's; the others have the
# best balanced accuracy over all blurs and noises of `bvit.studies.focus_benchmark`, on 32
# photographs: relative is right for 78 % of the patches, reblur 78 %, Tenengrad 69 %, entropy 57 %;
# the Laplacian at 100 for 76 % without noise, and at a noise of 5 grey levels for half.
THRESHOLDS: dict[str, float] = {
    "laplacian": PAPER_THRESHOLD,
    "tenengrad": 9500.0,
    "reblur": 28.0,
    "entropy": 2.3,
    "relative": 0.07,
}

# What patches are ranked by: the paper's. `relative` and `focus_map` separate sharp patches from
# blurred ones better, but those with the most contrast tell a ViT more: see docs/results.md.
DEFAULT_MEASURE = "laplacian"


def own_threshold(score: str | FocusMeasure) -> float:
    """The recommended threshold of a focus measure, from `THRESHOLDS`.

    Args:
      score: a name in `FOCUS_MEASURES`; a function has no threshold of its own.

    Raises:
      ValueError: no such focus measure, or a function.
    """
    if not isinstance(score, str):
        raise ValueError(
            "a function has no threshold of its own: give one, or a focus measure's name."
        )
    check_name("focus measure", score, FOCUS_MEASURES)
    return THRESHOLDS[score]


def _measure(image: ArrayLike, patch_size: int, function: Callable[..., Array]) -> Array:
    check_image(image, channels=3)
    check_patch_size(np.shape(image)[-3:-1], patch_size)
    return _mapped(image, patch_size=patch_size, function=function)


@partial(jax.jit, static_argnames=("patch_size", "function"))
def _mapped(image: Array, *, patch_size: int, function: Callable[..., Array]) -> Array:
    def one(image: Array) -> Array:
        return function(WHITE * grayscale(image.astype(jnp.float32)), patch_size)

    return map_images(one, image)


def _tenengrad(grey: Array, patch_size: int) -> Array:
    down, across = (_sobel(grey, axis) for axis in (0, 1))
    return block_values(down * down + across * across, patch_size).mean(-1)


def _reblur_error(grey: Array, patch_size: int) -> Array:
    height, width = grey.shape
    even = jnp.pad(grey, ((0, height % 2), (0, width % 2)), mode="edge")
    coarse = halve(even[..., None])[..., 0]
    error = (even - _double(_double(coarse, 0), 1))[:height, :width]
    return block_values(error * error, patch_size).mean(-1)


def _entropy(grey: Array, patch_size: int) -> Array:
    bins = jnp.clip(grey * (ENTROPY_BINS / (WHITE + 1)), 0, ENTROPY_BINS - 1).astype(jnp.int32)
    one_hot = block_values(bins, patch_size)[..., None] == jnp.arange(ENTROPY_BINS)
    shares = one_hot.mean(-2, dtype=jnp.float32)
    return jax.scipy.special.entr(shares).sum(-1) / math.log(2)


def _relative_detail(grey: Array, patch_size: int) -> Array:
    smooth = _binomial(_binomial(grey, 0), 1)
    fine = block_values(laplacian(smooth, smooth.shape), patch_size).var(-1)
    contrast = block_values(grey, patch_size).var(-1)
    floor = FLAT_VARIANCE + FLAT_NOISE_VARIANCES * noise_variance(grey, patch_size)
    return fine / (contrast + floor)


def noise_variance(grey: Float[Array, "h w"], patch_size: int) -> Float[Array, ""]:
    """Variance of an image's noise, from the finest diagonal Haar coefficients.

    Donoho and Johnstone 1994; here from the quietest quarter of the patches, since photographs have
    diagonal detail of their own.

    Args:
      grey: one image, on any scale; the result is in its square.
      patch_size: side of the patches in pixels, even; static.
    """
    a, b, c, d = (grey[i::2, j::2] for i in (0, 1) for j in (0, 1))
    height, width = d.shape
    diagonal = (a[:height, :width] - b[:height] - c[:, :width] + d) / 2
    energy = block_values(diagonal * diagonal, patch_size // 2).mean(-1)
    return jnp.quantile(energy, NOISE_QUANTILE)


def _neighbours(x: Array, axis: int, border: str = "reflect") -> Iterator[Array]:
    """The values before and after each one; border as jnp.pad calls it."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (1, 1)
    padded = jnp.pad(x, padding, mode=border)
    size = x.shape[axis]
    return (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in (0, 2))


def _sobel(x: Array, axis: int) -> Array:
    before, after = _neighbours(x, axis)
    difference = after - before
    before, after = _neighbours(difference, 1 - axis)
    return before + 2 * difference + after


def _binomial(x: Array, axis: int) -> Array:
    before, after = _neighbours(x, axis)
    return (before + 2 * x + after) / 4


def _double(x: Array, axis: int) -> Array:
    """Linear interpolation to twice the size, pixel centres a quarter off, edges repeated."""
    before, after = _neighbours(x, axis, border="edge")
    both = jnp.stack([(3 * x + before) / 4, (3 * x + after) / 4], axis=axis + 1)
    return both.reshape([2 * n if i == axis else n for i, n in enumerate(x.shape)])
