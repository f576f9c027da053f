"""The five blurs of ImageNet-C, on the device (Hendrycks and Dietterich 2019).

"Benchmarking neural network robustness to common corruptions and perturbations", made for images
of 224×224. Parameters, kernels, borders and the order of operations are the published ones. The
differences:

- The published images are JPEGs of quality 85, rounded to 8 bits before (glass blur also in
  between). Nothing is rounded or compressed here, so results are a little better.
- The motion blur follows the description of ImageMagick's: a Gaussian from the pixel to one side,
  at offsets rounded to whole pixels. It was not compared with ImageMagick itself.
- Zoom blur takes any height and width, and means the crop's share of each; the original cuts a
  square by the height.
- Random draws are jax's, one key for each image.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from bvit.image.batching import Keys, image_keys, map_images
from bvit.image.checks import check_kernel_size, short
from bvit.image.fourier import convolve_one
from bvit.image.glass import move_pixels
from bvit.image.pixels import check_image
from bvit.image.separable import filter_both_axes, half_gaussian
from bvit.image.zoom import mean_resampled

# Mean error over the severities of AlexNet, by which corruption errors are divided
# (github.com/hendrycks/robustness, ImageNet-C/test.py).
ALEXNET_ERROR = {
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
}

# Where the published Gaussians end, in standard deviations (scikit-image's default).
TRUNCATE = 4.0
# Up to this radius all the disks have a kernel of 17×17 and are smoothed over 3×3, above it 5×5.
SMALL_DISK = 8
# The motion's angle is uniform within this many degrees of the horizontal.
MOTION_ANGLE = 45.0


def corrupt(
    key: Keys, image: Float[ArrayLike, "*b h w c"], *, name: str, severity: int
) -> Float[Array, "*b h w c"]:
    """Applies one of ImageNet-C's blurs; see above where it differs from the published images.

    Args:
      key: one PRNG key, or one for each image; with one, image i of the batch draws from
        fold_in(key, i). Only glass and motion blur draw at all.
      image: grey or RGB in [0, 1], any leading batch axes.
      name: "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", or "gaussian_blur" (which is
        one of the extra corruptions); static.
      severity: 1 to 5; static.

    Returns:
      Images of the shape and dtype of `image`, clipped to [0, 1].

    Raises:
      ValueError: not an image, or one smaller than the kernel; another name or severity; keys that
        are neither one nor one for each image.
    """
    check_image(image)
    check_corruption(name, severity)
    if name == "defocus_blur":
        check_kernel_size(len(published_disk(*_BLURS[name][1][severity - 1])), np.shape(image))
    keys = image_keys(key, np.shape(image)[:-3])
    return _corrupt(keys, image, name=name, severity=severity)


def check_corruption(name: str, severity: int | str) -> None:
    """Raises ValueError if there is no such blur in ImageNet-C."""
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}: got {short(name)}.")
    if severity not in SEVERITIES:
        raise ValueError(
            f"severity must be 1, 2, 3, 4 or 5 (the strongest): got {short(severity)}."
        )


def corruption_error(name: str, errors: Sequence[float]) -> float:
    """The published CE: the mean error over the severities, over AlexNet's.

    Args:
      name: of the corruption.
      errors: top-1 errors in [0, 1], one for each severity.

    Raises:
      ValueError: not five errors; a corruption without a published error of AlexNet.
    """
    if name not in ALEXNET_ERROR:
        raise ValueError(
            f"AlexNet's error is published for {', '.join(ALEXNET_ERROR)}: got {short(name)}."
        )
    if len(errors) != len(SEVERITIES):
        raise ValueError(f"errors must be one for each of 5 severities: got {len(errors)}.")
    return float(np.mean(errors)) / ALEXNET_ERROR[name]


def published_disk(radius: int, sigma: float) -> Float[np.ndarray, "k k"]:
    """A disk of whole pixels, smoothed by a small Gaussian within its square (mirrored there)."""
    half, taps = (SMALL_DISK, 1) if radius <= SMALL_DISK else (radius, 2)
    place = np.arange(-half, half + 1)
    disk = (place[:, None] ** 2 + place**2 <= radius**2).astype(np.float64)
    weights = np.exp(-0.5 * (np.arange(-taps, taps + 1) / sigma) ** 2)
    weights /= weights.sum()
    padded = np.pad(disk / disk.sum(), taps, mode="reflect")
    rows = sum(w * padded[i : i + len(disk)] for i, w in enumerate(weights))
    return sum(w * rows[:, i : i + len(disk)] for i, w in enumerate(weights))


def motion_offsets(width: int, angle: Float[Array, ""]) -> tuple[Array, Array]:
    """Rows and columns from a pixel to the pixels it averages, rounded to whole numbers."""
    step = jnp.arange(width)
    radians = jnp.radians(angle)
    down, right = (jnp.ceil(step * f(radians) - 0.5) for f in (jnp.sin, jnp.cos))
    return down.astype(jnp.int32), right.astype(jnp.int32)


def zoom_places(length: int, factor: float) -> Float[np.ndarray, " length"]:
    """Where each pixel along a side comes from, in the published zoom of the cut-out middle."""
    cut = math.ceil(length / factor)
    enlarged = round(cut * factor)
    first = (length - cut) // 2
    place = np.arange(length) + (enlarged - length) // 2
    return first + place * (cut - 1) / max(enlarged - 1, 1)


def _defocus(key: Array, image: Array, radius: int, sigma: float) -> Array:
    del key
    return convolve_one(image, jnp.asarray(published_disk(radius, sigma), jnp.float32))


def _glass(key: Array, image: Array, sigma: float, max_shift: int, rounds: int) -> Array:
    moved = move_pixels(key, _gaussian(key, image, sigma), max_shift=max_shift, rounds=rounds)
    return _gaussian(key, moved, sigma)


def _motion(key: Array, image: Array, radius: int, sigma: float) -> Array:
    angle = jax.random.uniform(key, (), jnp.float32, -MOTION_ANGLE, MOTION_ANGLE)
    width = 2 * radius + 1
    down, right = motion_offsets(width, angle)
    weights = np.exp(-0.5 * (np.arange(width) / sigma) ** 2)
    # A convolution flips its kernel: the weight of a pixel to the right is at the left.
    reach = width - 1
    kernel = jnp.zeros((2 * reach + 1, 2 * reach + 1), jnp.float32)
    kernel = kernel.at[reach - down, reach - right].add(weights / weights.sum())
    return convolve_one(image, kernel, border="edge")


def _zoom(key: Array, image: Array, end: float, step: float) -> Array:
    del key
    # The image itself counts once more. NumPy's rounding decides where the range ends.
    factors = [1.0, *np.arange(1, end, step)]
    rows, columns = (
        np.stack([zoom_places(length, factor) for factor in factors]) for length in image.shape[:2]
    )
    return mean_resampled(image, rows, columns)


def _gaussian(key: Array, image: Array, sigma: float) -> Array:
    del key
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    taps = half_gaussian(jnp.asarray(sigma, dtype), int(TRUNCATE * sigma + 0.5))
    return filter_both_axes(image, taps, border="edge")


# What follows the image in each function, for severities 1 to 5 (make_imagenet_c.py).
_BLURS: dict[str, tuple[Callable[..., Array], tuple[tuple[Any, ...], ...]]] = {
    "defocus_blur": (_defocus, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": (_glass, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion_blur": (_motion, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": (_zoom, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "gaussian_blur": (_gaussian, ((1,), (2,), (3,), (4,), (6,))),
}
NAMES = tuple(_BLURS)
SEVERITIES = (1, 2, 3, 4, 5)


@partial(jax.jit, static_argnames=("name", "severity"))
def _corrupt(keys: Array, image: Array, *, name: str, severity: int) -> Array:
    function, parameters = _BLURS[name]

    def blur(one: Array, key: Array) -> Array:
        return jnp.clip(function(key, one, *parameters[severity - 1]), 0, 1)

    return map_images(blur, image, keys)
