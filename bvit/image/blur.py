"""Gaussian blur: with a given sigma, a random one, or in random regions of each image."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, Real

from bvit.image.batching import Keys, image_keys, map_images, vmap_batch
from bvit.image.checks import (
    check_kernel_size,
    check_range,
    check_strength,
    gaussian_kernel_size,
)
from bvit.image.pixels import check_image
from bvit.image.region import smooth_region
from bvit.image.separable import filter_both_axes, half_gaussian


def gaussian_blur(
    image: Float[ArrayLike, "*b h w c"],
    sigma: Real[ArrayLike, "*#b"],
    *,
    kernel_size: int | None = 19,
    border: str = "reflect",
) -> Float[Array, "*b h w c"]:
    """Blurs each image with a Gaussian of its own width.

    Separable; taps exp(-t^2 / (2 sigma^2)) at t = -(k-1)/2 .. (k-1)/2, normalised to sum 1. The
    defaults give the same as torchvision's GaussianBlur; k = 19 is that of the paper this project
    follows. Sums are taken in float32 at least.

    Args:
      image: grey or RGB in [0, 1], any leading batch axes.
      sigma: standard deviation in pixels, >= 0: one for all images, or one each. 0 leaves an image
        exactly as it is. A JAX array is not checked: what is negative in it counts as 0.
      kernel_size: number of taps, odd; static. The kernel is cut off at its ends: there is a
        warning where that is before 2 sigma. None takes the least one that reaches to 3 sigma, for
        a sigma that is not traced.
      border: how the image continues beyond its border; static. "reflect" mirrors it without
        repeating the edge pixel (cv2.BORDER_REFLECT_101), "edge" repeats that pixel, "constant" is
        black.

    Returns:
      The blurred images, with the shape and dtype of `image`. Differentiable by image and sigma.

    Raises:
      ValueError: not an image; a sigma that is negative, NaN, or not one for each image; an odd
        Python integer from 3 on as sigma, since torchvision's second argument is the kernel size; a
        kernel that is even or reaches further than the mirrored image; an unknown border.
    """
    check_image(image)
    check_strength("sigma", sigma, np.shape(image)[:-3])
    if type(sigma) is int and sigma >= 3 and sigma % 2:
        raise ValueError(
            f"the second argument is sigma, a float in pixels: got the integer {sigma}, which is "
            "torchvision's kernel_size; write "
            f"gaussian_blur(image, {0.15 * sigma + 0.35:g}, kernel_size={sigma}) for torchvision's "
            f"default, or {sigma}.0 for a sigma of {sigma} pixels."
        )
    kernel_size = gaussian_kernel_size(kernel_size, sigma)
    check_kernel_size(kernel_size, np.shape(image), border)
    return _blur(image, jnp.asarray(sigma), kernel_size=kernel_size, border=border)


def random_gaussian_blur(
    key: Keys,
    image: Float[ArrayLike, "*b h w c"],
    *,
    sigma_range: tuple[float, float] = (1.0, 2.0),
    kernel_size: int | None = 19,
    border: str = "reflect",
    probability: float = 1.0,
) -> Float[Array, "*b h w c"]:
    """Blurs each image by `gaussian_blur`, with a sigma of its own drawn uniformly.

    Args:
      key: one PRNG key, or one for each image; with one, image i of the batch (counted row by row)
        draws from fold_in(key, i), so that its sigma depends neither on the batch's size nor on
        the other images. An image without batch axes draws from the key itself.
      image: grey or RGB in [0, 1], any leading batch axes.
      sigma_range: lowest and highest sigma, in pixels; (1, 2) with 19 taps is the paper's blur.
      kernel_size: number of taps, odd; static. None fits it to the highest sigma.
      border: as in `gaussian_blur`.
      probability: with which each image is blurred; otherwise it is left exactly as it is.

    Returns:
      Images of the shape and dtype of `image`.

    Raises:
      ValueError: as `gaussian_blur`; a range that is reversed or negative; a probability outside
        [0, 1]; keys that are neither one nor one for each image.
    """
    check_image(image)
    check_range("sigma_range", sigma_range)
    check_range("probability", (probability, probability), highest=1.0)
    kernel_size = gaussian_kernel_size(kernel_size, sigma_range[1])
    check_kernel_size(kernel_size, np.shape(image), border)
    keys = image_keys(key, np.shape(image)[:-3])
    return _random_blur(
        keys, image, sigma_range, probability, kernel_size=kernel_size, border=border
    )


def drawn_sigma(
    key: Key[Array, "*b"],
    *,
    sigma_range: tuple[float, float] = (1.0, 2.0),
    probability: float = 1.0,
) -> Float[Array, "*b"]:
    """The sigma by which `random_gaussian_blur` blurs the image of each key (typed), in pixels."""
    draw = partial(_draw_sigma, sigma_range=sigma_range, probability=probability)
    return vmap_batch(draw, key.shape)(key)


def region_blur(
    key: Keys,
    image: Float[ArrayLike, "*b h w c"],
    *,
    sigma_range: tuple[float, float] = (2.0, 4.0),
    area_range: tuple[float, float] = (0.3, 0.7),
    kernel_size: int = 19,
    probability: float = 1.0,
    return_map: bool = False,
) -> Float[Array, "*b h w c"] | tuple[Float[Array, "*b h w c"], Float[Array, "*b h w"]]:
    """Blurs a random region of each image, as in a photograph that is partly out of focus.

    The region is where smooth noise exceeds a threshold, chosen so that the region covers the drawn
    share of the image to within a pixel or so. Inside it are the pixels of `gaussian_blur` of the
    whole image, outside it the image is untouched. The edge is hard, because a cross-fade keeps
    some fine detail: a pixel in it would have no single true blur, and the area no exact size.

    Args:
      key: one PRNG key, or one for each image, as in `random_gaussian_blur`.
      image: grey or RGB in [0, 1], any leading batch axes.
      sigma_range: lowest and highest sigma, in pixels; one draw for each image.
      area_range: smallest and largest share of an image that is blurred, in [0, 1]; one draw each.
      kernel_size: number of taps, odd; static.
      probability: with which each image is blurred; otherwise it is left exactly as it is.
      return_map: whether to return the true blur map too; static.

    Returns:
      Images of the shape and dtype of `image`; with `return_map`, also the map [*b, h, w], float32:
      the sigma in pixels by which each pixel was blurred, 0 where it is untouched (so that
      `map > 0` is the region).

    Raises:
      ValueError: as `random_gaussian_blur`; an area range outside [0, 1].
    """
    check_image(image)
    check_kernel_size(kernel_size, np.shape(image))
    check_range("sigma_range", sigma_range)
    check_range("area_range", area_range, highest=1.0)
    check_range("probability", (probability, probability), highest=1.0)
    keys = image_keys(key, np.shape(image)[:-3])
    blurred, sigma_map = _region_blur(
        keys, image, sigma_range, area_range, probability, kernel_size=kernel_size
    )
    return (blurred, sigma_map) if return_map else blurred


@partial(jax.jit, static_argnames=("kernel_size", "border"))
def _blur(image: Array, sigma: Array, *, kernel_size: int, border: str) -> Array:
    sigma = jnp.broadcast_to(sigma, image.shape[:-3])
    return map_images(partial(_blur_one, kernel_size=kernel_size, border=border), image, sigma)


@partial(jax.jit, static_argnames=("kernel_size", "border"))
def _random_blur(
    keys: Array,
    image: Array,
    sigma_range: Sequence[Any],
    probability: ArrayLike,
    *,
    kernel_size: int,
    border: str,
) -> Array:
    def blur(one: Array, key: Array) -> Array:
        sigma = _draw_sigma(key, sigma_range, probability)
        return _blur_one(one, sigma, kernel_size=kernel_size, border=border)

    return map_images(blur, image, keys)


@partial(jax.jit, static_argnames="kernel_size")
def _region_blur(
    keys: Array,
    image: Array,
    sigma_range: Sequence[Any],
    area_range: Sequence[Any],
    probability: ArrayLike,
    *,
    kernel_size: int,
) -> tuple[Array, Array]:
    def blur(one: Array, key: Array) -> tuple[Array, Array]:
        sigma_key, area_key, noise_key = jax.random.split(key, 3)
        chosen = _uniform(jax.random.fold_in(sigma_key, 0), (0.0, 1.0)) < probability
        sigma = jnp.where(chosen, _uniform(sigma_key, sigma_range), 0.0)
        region = smooth_region(noise_key, _uniform(area_key, area_range), one.shape[:2])
        blurred = _blur_one(one, sigma, kernel_size=kernel_size)
        return jnp.where(region[..., None], blurred, one), jnp.where(region, sigma, 0.0)

    return map_images(blur, image, keys)


def _draw_sigma(key: Array, sigma_range: Sequence[Any], probability: ArrayLike) -> Array:
    sigma_key, coin_key = jax.random.split(key)
    chosen = _uniform(coin_key, (0.0, 1.0)) < probability
    return jnp.where(chosen, _uniform(sigma_key, sigma_range), 0.0)


def _uniform(key: Array, bounds: Sequence[Any]) -> Array:
    return jax.random.uniform(key, dtype=jnp.float32, minval=bounds[0], maxval=bounds[1])


def _blur_one(image: Array, sigma: Array, *, kernel_size: int, border: str = "reflect") -> Array:
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    return filter_both_axes(image, half_gaussian(sigma.astype(dtype), kernel_size // 2), border)
