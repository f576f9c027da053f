"""A Gaussian blur whose width differs from pixel to pixel, as the depth of a scene makes it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from bvit.image.batching import Keys, image_keys, map_images, vmap_batch
from bvit.image.checks import check_kernel_size, check_range
from bvit.image.draws import split_each, uniform_each
from bvit.image.pixels import check_image
from bvit.image.region import smooth_noise
from bvit.image.separable import half_gaussian


def variable_gaussian_blur(
    image: Float[ArrayLike, "*b h w c"],
    sigma_map: Float[ArrayLike, "*#b h w"],
    *,
    kernel_size: int = 19,
) -> Float[Array, "*b h w c"]:
    """Gives each pixel the value that `gaussian_blur` with its own sigma would give it.

    Exact, with kernel_size² taps for each pixel; those at the same distance share a multiplication.
    A pixel gathers from its surroundings, as in most renderers of depth of field; light that a
    blurred point scatters over a sharp neighbour is not modelled.

    Args:
      image: grey or RGB in [0, 1], any leading batch axes; the border is mirrored without repeating
        the edge pixel.
      sigma_map: standard deviation at each pixel, >= 0: one map for all images, or one each. A
        pixel of 0 stays exactly as it is. The values of a JAX array are not checked.
      kernel_size: number of taps along each axis, odd; static.

    Returns:
      The blurred images, with the shape and dtype of `image`; differentiable by image and map.

    Raises:
      ValueError: not an image; a map of another size, negative, or not one for each image; a kernel
        that is even or reaches further than the mirrored image.
    """
    check_image(image)
    shape = np.shape(image)
    check_kernel_size(kernel_size, shape)
    if np.shape(sigma_map) not in (shape[-3:-1], shape[:-1]):
        raise ValueError(
            f"sigma_map must be {shape[-3:-1]}, or that for each image: got {np.shape(sigma_map)} "
            f"for images of shape {shape}."
        )
    if not isinstance(sigma_map, jax.Array) and not np.all(np.asarray(sigma_map) >= 0):
        raise ValueError("sigma_map must be >= 0 (0 leaves a pixel as it is): got some below.")
    return _variable(image, sigma_map, kernel_size=kernel_size)


def random_variable_gaussian_blur(
    key: Keys,
    image: Float[ArrayLike, "*b h w c"],
    *,
    sigma_range: tuple[float, float] = (0.0, 4.0),
    kernel_size: int = 19,
    probability: float = 1.0,
    return_map: bool = False,
) -> Float[Array, "*b h w c"] | tuple[Float[Array, "*b h w c"], Float[Array, "*b h w"]]:
    """Blurs each image by `variable_gaussian_blur`, with a smooth random map that fills the range.

    Args:
      key: one PRNG key, or one for each image, as in `random_gaussian_blur`.
      image: grey or RGB in [0, 1], any leading batch axes.
      sigma_range: lowest and highest sigma in pixels; each map reaches both.
      kernel_size: number of taps along each axis, odd; static.
      probability: with which each image is blurred; otherwise it is left exactly as it is.
      return_map: whether to return the maps too; static.

    Returns:
      Images of the shape and dtype of `image`; with `return_map`, also the map [*b, h, w], float32.

    Raises:
      ValueError: not an image; a range that is reversed or negative; a probability outside [0, 1];
        keys that are neither one nor one for each image; a kernel as above.
    """
    check_image(image)
    check_kernel_size(kernel_size, np.shape(image))
    check_range("sigma_range", sigma_range)
    map_keys, keys = split_each(image_keys(key, np.shape(image)[:-3]))
    (blurred,) = uniform_each(keys, image, {"blurred": (1.0, 1.0)}, probability)
    sigma_map = _random_maps(map_keys, blurred, sigma_range, shape=np.shape(image)[-3:-1])
    result = _variable(image, sigma_map, kernel_size=kernel_size)
    return (result, sigma_map) if return_map else result


@partial(jax.jit, static_argnames="kernel_size")
def _variable(image: Array, sigma_map: Array, *, kernel_size: int) -> Array:
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    sigma_map = jnp.broadcast_to(sigma_map, image.shape[:-1]).astype(dtype)
    return map_images(partial(_variable_one, kernel_size=kernel_size), image, sigma_map)


def _variable_one(image: Array, sigma: Array, *, kernel_size: int) -> Array:
    height, width, _ = image.shape
    radius = kernel_size // 2
    taps = half_gaussian(sigma, radius)[..., None]
    margins = [(radius, radius), (radius, radius), (0, 0)]
    mirrored = jnp.pad(image.astype(sigma.dtype), margins, mode="reflect")

    def add_rows(total: Array, distance: Array) -> tuple[Array, None]:
        """Adds the rows so far above and below, each blurred along the columns."""
        above, below = (
            lax.dynamic_slice_in_dim(mirrored, radius + d, height) for d in (-distance, distance)
        )
        rows = jnp.where(distance > 0, above + below, above)
        blurred = taps[..., 0, :] * rows[:, radius : radius + width]
        for step in range(1, radius + 1):
            left, right = (rows[:, radius + d :][:, :width] for d in (-step, step))
            blurred = blurred + taps[..., step, :] * (left + right)
        weight = lax.dynamic_index_in_dim(taps, distance, axis=2, keepdims=False)
        return total + weight * blurred, None

    start = jnp.zeros_like(image, dtype=sigma.dtype)
    blurred, _ = lax.scan(add_rows, start, jnp.arange(radius + 1))
    return jnp.where(sigma[..., None] > 0, blurred, image).astype(image.dtype)


@partial(jax.jit, static_argnames="shape")
def _random_maps(
    keys: Array, blurred: Array, sigma_range: Sequence[Any], *, shape: tuple[int, int]
) -> Array:
    def draw(key: Array, blurred: Array) -> Array:
        noise = smooth_noise(key, shape)
        share = (noise - noise.min()) / (noise.max() - noise.min())
        return blurred * (sigma_range[0] + share * (sigma_range[1] - sigma_range[0]))

    return vmap_batch(draw, keys.shape)(keys, blurred)
