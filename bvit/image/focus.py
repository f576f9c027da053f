"""Where an image is in focus: the variance of the Laplacian of each patch, and masks from it."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from bvit.image.batching import map_images
from bvit.image.checks import short
from bvit.image.patches import check_patch_size
from bvit.image.pixels import LUMA, check_image

# The paper's threshold, of 8-bit photographs: a patch of lower variance counts as blurry.
PAPER_THRESHOLD = 100.0

# The scale on which variances are given, that of 8-bit tools.
WHITE = 255.0

# LUMA in units of 1/32768, with which OpenCV rounds 8-bit grey (imgproc/src/color.hpp: RY15, GY15,
# BY15). A sum of these times 8-bit values is an integer that float32 holds exactly.
LUMA_15_BIT = (9798.0, 19235.0, 3735.0)
ONE_15_BIT = 32768.0

Border = Literal["patch", "image"]


def patch_laplacian_variance(
    image: Float[ArrayLike, "*b h w 3"],
    *,
    patch_size: int,
    border: Border = "patch",
    quantize: bool = False,
) -> Float[Array, "*b h//{patch_size} w//{patch_size}"]:
    """The variance of the Laplacian in each patch: low where the image is blurry, or empty.

    Grey is 0.299 R + 0.587 G + 0.114 B on the 0-255 scale, the kernel [[0,1,0],[1,-4,1],[0,1,0]],
    its border mirrored without repeating the edge pixel, the variance that of the population
    (Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy", LAPV).

    Args:
      image: RGB in [0, 1], any leading batch axes.
      patch_size: side of the square patches in pixels, a divisor of height and width; static.
      border: "patch" takes each patch on its own, as cv2.Laplacian(patch, CV_64F).var() does;
        "image" takes the Laplacian of the whole image, and then divides that. Static.
      quantize: whether to round grey to integers, exactly as OpenCV does: on 8-bit pixels the
        result is then OpenCV's. Its gradient is 0. Static.

    Returns:
      [*b, h/p, w/p], float32 (a bfloat16 could not rank patches), in squared 0-255 grey levels.

    Raises:
      ValueError: not an RGB image, patches that do not fit, or an unknown border.
    """
    check_image(image, channels=3)
    check_patch_size(np.shape(image)[-3:-1], patch_size)
    if border not in ("patch", "image"):
        raise ValueError(f'border must be "patch" or "image": got {short(border)}.')
    return _variance(image, patch_size=patch_size, border=border, quantize=bool(quantize))


def patch_mask(
    image: Float[ArrayLike, "*b h w 3"],
    *,
    patch_size: int,
    threshold: float | Float[ArrayLike, ""] = PAPER_THRESHOLD,
    remove: Literal["blurry", "sharp"] = "blurry",
    border: Border = "patch",
    quantize: bool = False,
) -> Bool[Array, "*b h//{patch_size} w//{patch_size}"]:
    """Which patches to keep, by the variance of their Laplacian.

    Args:
      image: RGB in [0, 1], any leading batch axes.
      patch_size: side of the patches, as in `patch_laplacian_variance`; static.
      threshold: of the variance, in squared 0-255 grey levels.
      remove: "blurry" keeps a patch whose variance is at least the threshold. "sharp" is
        the paper's other sentence, that a patch above the threshold is not used, and keeps the
        rest. Static.
      border: as in `patch_laplacian_variance`; static.
      quantize: as in `patch_laplacian_variance`; static.

    Returns:
      [*b, h/p, w/p], True where a patch is kept.

    Raises:
      ValueError: as `patch_laplacian_variance`, or another word for `remove`.
    """
    if remove not in ("blurry", "sharp"):
        raise ValueError(f'remove must be "blurry" or "sharp": got {short(remove)}.')
    variance = patch_laplacian_variance(
        image, patch_size=patch_size, border=border, quantize=quantize
    )
    return variance >= threshold if remove == "blurry" else variance <= threshold


def mask_patches(
    image: Float[ArrayLike, "*b h w c"],
    keep: Bool[ArrayLike, "*b h//{patch_size} w//{patch_size}"],
    *,
    patch_size: int,
) -> Float[Array, "*b h w c"]:
    """Sets the pixels of the patches that are not kept to 0.

    Args:
      image: grey or RGB, any leading batch axes; in [0, 1] zero is black, after `normalize` it is
        the mean colour.
      keep: a bool for each patch of each image, True to keep it.
      patch_size: side of the patches in pixels, a divisor of height and width; static.

    Returns:
      Images of the shape and dtype of `image`.

    Raises:
      ValueError: not an image, patches that do not fit, or `keep` is not bool or of another shape.
    """
    check_image(image)
    *batch, height, width, _ = np.shape(image)
    check_patch_size((height, width), patch_size)
    grid = (*batch, height // patch_size, width // patch_size)
    if np.shape(keep) != grid or jnp.result_type(keep) != jnp.bool_:
        raise ValueError(
            f"keep must be bool of shape {grid}, one for each patch: got "
            f"{jnp.result_type(keep)} of shape {np.shape(keep)}."
        )
    return _mask(image, keep, patch_size=patch_size)


@partial(jax.jit, static_argnames=("patch_size", "border", "quantize"))
def _variance(image: Array, *, patch_size: int, border: Border, quantize: bool) -> Array:
    def variance(one: Array) -> Array:
        height, width, _ = one.shape
        grey = _grey_levels(one, quantize)
        tile = (patch_size, patch_size) if border == "patch" else (height, width)
        # On a CPU two thirds of the time of a variance over transposed blocks.
        patches = laplacian(grey, tile).reshape(
            height // patch_size, patch_size, width // patch_size, patch_size
        )
        return jnp.var(patches, axis=(1, 3)).astype(jnp.float32)

    return map_images(variance, image)


@partial(jax.jit, static_argnames="patch_size")
def _mask(image: Array, keep: Array, *, patch_size: int) -> Array:
    kept = jnp.repeat(jnp.repeat(keep, patch_size, axis=-2), patch_size, axis=-1)
    return jnp.where(kept[..., None], image, 0)


def _grey_levels(image: Float[Array, "h w 3"], quantize: bool) -> Float[Array, "h w"]:
    """Grey on the 0-255 scale, at least float32."""
    image = image.astype(jnp.promote_types(image.dtype, jnp.float32))
    red, green, blue = (WHITE * image[..., channel] for channel in range(3))
    if not quantize:
        return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    scaled = LUMA_15_BIT[0] * red + LUMA_15_BIT[1] * green + LUMA_15_BIT[2] * blue
    return jnp.floor((scaled + ONE_15_BIT / 2) / ONE_15_BIT)


def laplacian(grey: Float[Array, "h w"], tile: tuple[int, ...]) -> Float[Array, "h w"]:
    """Sum of the four neighbours less four times the pixel; each tile's border is mirrored."""
    return _neighbours(grey, 0, tile[0]) + _neighbours(grey, 1, tile[1]) - 4 * grey


def _neighbours(grey: Array, axis: int, tile: int) -> Array:
    """The pixel before plus the one after; at a tile's edge the inner neighbour counts twice."""
    before, after = _shift(grey, axis, 1), _shift(grey, axis, -1)
    place = lax.broadcasted_iota(jnp.int32, grey.shape, axis) % tile
    return jnp.where(place == 0, after, before) + jnp.where(place == tile - 1, before, after)


def _shift(grey: Array, axis: int, steps: int) -> Array:
    # A pad by (1, -1) shifts, and XLA computes it where it is read: jnp.roll took a third longer.
    padding = [(0, 0, 0), (0, 0, 0)]
    padding[axis] = (steps, -steps, 0)
    return lax.pad(grey, jnp.zeros((), grey.dtype), padding)
