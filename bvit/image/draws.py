"""What a random blur draws for each image."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from bvit.image.batching import Keys, image_keys, vmap_batch
from bvit.image.checks import check_range
from bvit.image.pixels import check_image


def uniform_each(
    key: Keys,
    image: Float[ArrayLike, "*b h w c"],
    ranges: dict[str, tuple[float, float]],
    probability: float,
) -> tuple[Float[Array, "*b"], ...]:
    """Draws one number for each image from each range, uniformly.

    Args:
      key: one PRNG key, or one for each image; with one, image i draws from fold_in(key, i).
      image: the images; only their batch axes count.
      ranges: lowest and highest value of each parameter, by its name in errors.
      probability: with which an image is blurred; otherwise all its numbers are 0.

    Raises:
      ValueError: not an image; a reversed range; a probability outside [0, 1]; keys that are
        neither one nor one for each image.
    """
    check_image(image)
    for name, bounds in ranges.items():
        check_range(name, bounds, lowest=-math.inf)
    check_range("probability", (probability, probability), highest=1.0)
    keys = image_keys(key, np.shape(image)[:-3])
    return _uniform_each(keys, tuple(ranges.values()), probability)


@jax.jit
def _uniform_each(keys: Array, ranges: Sequence[Any], probability: ArrayLike) -> tuple[Array, ...]:
    draw = partial(_draw, ranges=ranges, probability=probability)
    return vmap_batch(draw, keys.shape)(keys)


def _draw(key: Array, *, ranges: Sequence[Any], probability: ArrayLike) -> tuple[Array, ...]:
    coin_key, *number_keys = jax.random.split(key, 1 + len(ranges))
    blurred = jax.random.uniform(coin_key) < probability
    return tuple(
        jnp.where(blurred, jax.random.uniform(k, (), jnp.float32, low, high), 0.0)
        for k, (low, high) in zip(number_keys, ranges, strict=True)
    )


@partial(jax.jit, static_argnames="count")
def split_each(keys: Key[Array, "*b"], count: int = 2) -> tuple[Key[Array, "*b"], ...]:
    """Splits each image's key (typed) into several, for independent draws; `count` is static."""
    keys = vmap_batch(partial(jax.random.split, num=count), keys.shape)(keys)
    return tuple(keys[..., i] for i in range(count))
