"""Any leading batch axes: one function that maps over them, and one random key for each image."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Key, Shaped, UInt32

# On a CPU a whole batch falls out of the cache between two steps of a filter, and is slower by half
# or more. Eight images of 224x224x3 (5 MB as float32) at a time were fastest, measured on 2 cores.
VALUES_AT_ONCE = 8 * 224 * 224 * 3

# One key for all images, or one for each; typed, or raw with their extra last axis.
Keys = Key[Array, "*#b"] | UInt32[ArrayLike, "*#b words"]


def map_images(
    function: Callable[..., Any], image: Shaped[Array, "*b h w c"], *others: Shaped[Array, "..."]
) -> Any:
    """Applies a function of one image to each image of a batch; traceable, for use under jit.

    Accelerators get the whole batch at once. A CPU gets it in chunks that stay in its cache, by a
    loop over the batch: where a batch axis is sharded, call this inside shard_map. Otherwise XLA
    gathers the batch on each CPU device (the result is the same), and a mesh with explicit axes
    raises an error.

    Args:
      function: takes image [h, w, c] and a slice of each of the others; returns a pytree.
      image: the images, with any number of leading batch axes.
      *others: arrays with the same leading axes (keys, sigmas).

    Returns:
      What the function returned, each leaf with the leading axes [*b] in front.
    """
    *batch, height, width, channels = image.shape
    if not batch:
        return function(image, *others)
    count = math.prod(batch)
    flat = [x.reshape(count, *x.shape[len(batch) :]) for x in (image, *others)]
    vectorized = jax.vmap(function)
    at_once = max(1, VALUES_AT_ONCE // (height * width * channels))
    if count <= at_once:
        mapped = vectorized(*flat)
    else:
        chunked = partial(_chunked, function, at_once)
        mapped = lax.platform_dependent(*flat, cpu=chunked, default=vectorized)
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), mapped)


def vmap_batch(function: Callable[..., Any], batch: Sequence[int]) -> Callable[..., Any]:
    """The function of one image's values (keys, numbers) as one of arrays with these batch axes."""
    for _ in batch:
        function = jax.vmap(function)
    return function


def _chunked(function: Callable[..., Any], at_once: int, *flat: Array) -> Any:
    return lax.map(lambda slices: function(*slices), flat, batch_size=at_once)


def image_keys(key: Keys, batch: tuple[int, ...]) -> Key[Array, "*b"]:
    """One key for each image, so that what an image draws never depends on its batch.

    Args:
      key: either one key, and then image i of the batch (counted row by row) gets fold_in(key, i);
        or an array of keys of shape `batch`, used as they are (for an image without batch axes
        this is its one key). Typed keys, or raw uint32 ones with their extra last axis.
      batch: the images' leading axes.

    Returns:
      Typed keys of shape `batch`.

    Raises:
      ValueError: the key is not a PRNG key, or its shape is neither () nor `batch`.
    """
    keys = jnp.asarray(key)
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        if keys.dtype != jnp.uint32 or keys.ndim == 0:
            raise ValueError(
                f"key must be a PRNG key: got an array of {keys.dtype} with shape {keys.shape}; "
                "make one with jax.random.key(seed)."
            )
        keys = jax.random.wrap_key_data(keys)
    if keys.shape == batch:
        return keys
    if keys.shape:
        raise ValueError(
            f"key must be one key, or one for each image: got keys of shape {keys.shape} for "
            f"images of batch shape {batch}; use jax.random.key(seed) or "
            f"jax.random.split(key, {batch})."
        )
    index = jnp.arange(math.prod(batch)).reshape(batch)
    return vmap_batch(partial(jax.random.fold_in, keys), batch)(index)
