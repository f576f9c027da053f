"""What a sensor adds to a blurred image: noise, clipping, and 8 bits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from bvit.image.batching import Keys, image_keys, map_images
from bvit.image.checks import check_strength, short
from bvit.image.pixels import check_image


def sensor_noise(
    key: Keys,
    image: Float[ArrayLike, "*b h w c"],
    *,
    read: Real[ArrayLike, "*#b"] = 0.01,
    shot: Real[ArrayLike, "*#b"] = 0.01,
    bits: int | None = 8,
) -> Float[Array, "*b h w c"]:
    """Adds a sensor's noise to each image, clips it, and rounds it to so many bits.

    The noise is Gaussian, independent for each pixel and channel, of variance read² + shot² x at a
    pixel value x (Foi et al. 2008, "Practical Poissonian-Gaussian noise modeling and fitting for
    single-image raw-data").

    Args:
      key: one PRNG key, or one for each image, as in `random_gaussian_blur`.
      image: grey or RGB in [0, 1], any leading batch axes.
      read: standard deviation in the dark, >= 0: one for all images, or one each. 0.01 is 2.55 of
        255 grey levels.
      shot: standard deviation that light adds at white, >= 0.
      bits: of each value: rounds to multiples of 1 / (2^bits - 1), with a gradient of 0. None
        leaves values as they are, unclipped too; static.

    Returns:
      Images of the shape and dtype of `image`; in bfloat16, rounded to what it can hold.

    Raises:
      ValueError: not an image; a deviation that is negative, or not one for each image; bits
        outside 1 to 16; keys that are neither one nor one for each image.
    """
    check_image(image)
    batch = np.shape(image)[:-3]
    check_strength("read", read, batch)
    check_strength("shot", shot, batch)
    if bits is not None and bits not in range(1, 17):
        raise ValueError(
            f"bits must be an integer from 1 to 16, or None: got {short(bits)}; use 8."
        )
    return _noise(image_keys(key, batch), image, read, shot, bits=bits)


def round_to_bits(x: Float[Array, "..."], bits: int) -> Float[Array, "..."]:
    """Clips values to [0, 1], and rounds them to multiples of 1 / (2^bits - 1)."""
    steps = 2**bits - 1
    return jnp.round(jnp.clip(x, 0, 1) * steps) / steps


@partial(jax.jit, static_argnames="bits")
def _noise(keys: Array, image: Array, read: Array, shot: Array, *, bits: int | None) -> Array:
    def expose(one: Array, key: Array, read: Array, shot: Array) -> Array:
        dtype = jnp.promote_types(one.dtype, jnp.float32)
        x = one.astype(dtype)
        read, shot = read.astype(dtype), shot.astype(dtype)
        light = jnp.maximum(x, 0)
        # At no light and no noise the root's slope is infinite; it is taken of 1 there instead.
        variance = read**2 + shot**2 * light
        noisy = variance > 0
        deviation = jnp.where(noisy, jnp.sqrt(jnp.where(noisy, variance, 1)), 0)
        x = x + deviation * jax.random.normal(key, x.shape, dtype)
        if bits is not None:
            x = round_to_bits(x, bits)
        return x.astype(one.dtype)

    read, shot = (jnp.broadcast_to(x, image.shape[:-3]) for x in (read, shot))
    return map_images(expose, image, keys, read, shot)
