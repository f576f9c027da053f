"""Random regions of an image: a few smooth shapes, like objects that are out of focus."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Key

from bvit.image.batching import Keys, image_keys, vmap_batch
from bvit.image.checks import check_range
from bvit.image.draws import split_each, uniform_each

# A region's outline follows smooth noise drawn on this many points along each side: a handful of
# blobs an image, about the size of the objects in a photograph.
REGION_NOISE_POINTS = 6

# Halvings of the interval in which the region's threshold is sought: enough to hit the drawn area
# within about a pixel in 512 x 512.
AREA_BISECTIONS = 20


def region_mask(
    key: Keys,
    image: Float[ArrayLike, "*b h w c"],
    *,
    area_range: tuple[float, float] = (0.3, 0.7),
) -> Bool[Array, "*b h w"]:
    """A random region of each image, as `region_blur` blurs: with it, any blur can be local.

    For example `jnp.where(region_mask(key, image)[..., None], motion_blur(image, 9.0), image)`.

    Args:
      key: one PRNG key, or one for each image, as in `random_gaussian_blur`.
      image: grey or RGB in [0, 1], any leading batch axes; only its shape counts.
      area_range: smallest and largest share of an image that is covered, in [0, 1]; one draw each.

    Returns:
      [*b, h, w], True within the region.

    Raises:
      ValueError: not an image; an area range outside [0, 1] or reversed; keys that are neither one
        nor one for each image.
    """
    check_range("area_range", area_range, highest=1.0)
    region_keys, keys = split_each(image_keys(key, np.shape(image)[:-3]))
    (area,) = uniform_each(keys, image, {"area_range": area_range}, 1.0)
    return _regions(region_keys, area, shape=np.shape(image)[-3:-1])


@partial(jax.jit, static_argnames="shape")
def _regions(keys: Array, area: Array, *, shape: tuple[int, ...]) -> Array:
    return vmap_batch(partial(smooth_region, shape=shape), keys.shape)(keys, area)


def smooth_noise(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "h w"]:
    """Noise of a handful of blobs, for one image of that shape."""
    noise = jax.random.normal(key, (REGION_NOISE_POINTS, REGION_NOISE_POINTS), jnp.float32)
    return jax.image.resize(noise, shape, method="cubic")


def smooth_region(
    key: Key[Array, ""], area: Float[Array, ""], shape: tuple[int, ...]
) -> Bool[Array, "h w"]:
    """True where smooth noise is highest, over `area` (a share) of one image of that shape."""
    noise = smooth_noise(key, shape)
    wanted = jnp.round(area * noise.size).astype(jnp.int32)

    # Bisection, since sorting every pixel takes ten times as long as blurring them.
    def halve(_: ArrayLike, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        too_many = jnp.sum(noise > middle, dtype=jnp.int32) > wanted
        return jnp.where(too_many, middle, low), jnp.where(too_many, high, middle)

    # At `high` there are never too many; 1 below the lowest, all can be taken.
    bounds = (jnp.min(noise) - 1, jnp.max(noise))
    _, threshold = lax.fori_loop(0, AREA_BISECTIONS, halve, bounds)
    return noise > threshold
