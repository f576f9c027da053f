"""Zoom blur: the focal length changes while the shutter is open."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Real

from bvit.image.batching import Keys, map_images
from bvit.image.checks import check_range, check_strength, short
from bvit.image.draws import uniform_each
from bvit.image.pixels import check_image

# Magnifications over which the mean is taken, as many as in ImageNet-C's second severity.
STEPS = 16


def zoom_blur(
    image: Float[ArrayLike, "*b h w c"],
    amount: Real[ArrayLike, "*#b"],
    *,
    steps: int = STEPS,
) -> Float[Array, "*b h w c"]:
    """The mean of each image under magnifications from 1 to 1 + amount, about its centre.

    Args:
      image: grey or RGB in [0, 1], any leading batch axes.
      amount: >= 0, by how much the largest magnification exceeds 1: one for all images, or one
        each. 0 leaves an image exactly as it is. Near the border of an image of side s, points
        move by up to amount / (1 + amount) * s / 2 pixels.
      steps: number of magnifications, evenly spaced, >= 2; static. Interpolation is linear.

    Returns:
      The blurred images, with the shape and dtype of `image`.

    Raises:
      ValueError: not an image; an amount that is negative, or not one for each image; fewer steps.
    """
    _check(image, steps)
    check_strength("amount", amount, np.shape(image)[:-3])
    return _zoom(image, amount, steps=steps)


def random_zoom_blur(
    key: Keys,
    image: Float[ArrayLike, "*b h w c"],
    *,
    amount_range: tuple[float, float] = (0.05, 0.2),
    steps: int = STEPS,
    probability: float = 1.0,
) -> Float[Array, "*b h w c"]:
    """Blurs each image by `zoom_blur`, with an amount of its own drawn uniformly.

    Args:
      key: one PRNG key, or one for each image, as in `random_gaussian_blur`.
      image: grey or RGB in [0, 1], any leading batch axes.
      amount_range: smallest and largest amount.
      steps: number of magnifications; static.
      probability: with which each image is blurred; otherwise it is left exactly as it is.

    Returns:
      Images of the shape and dtype of `image`.

    Raises:
      ValueError: as `zoom_blur` and `random_motion_blur`.
    """
    _check(image, steps)
    check_range("amount_range", amount_range)
    (amount,) = uniform_each(key, image, {"amount_range": amount_range}, probability)
    return _zoom(image, amount, steps=steps)


def mean_resampled(
    image: Float[Array, "h w c"], rows: Float[ArrayLike, "n h"], columns: Float[ArrayLike, "n w"]
) -> Float[Array, "h w c"]:
    """The mean of one image read at n grids of coordinates, within it, by linear interpolation."""
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    exact = image.astype(dtype)

    def add(total: Array, grid: tuple[Array, Array]) -> tuple[Array, None]:
        return total + _read(_read(exact, grid[0], 0), grid[1], 1), None

    grids = (jnp.asarray(rows, dtype), jnp.asarray(columns, dtype))
    total, _ = lax.scan(add, jnp.zeros_like(exact), grids)
    return (total / len(grids[0])).astype(image.dtype)


def _check(image: ArrayLike, steps: int) -> None:
    check_image(image)
    if not isinstance(steps, (int, np.integer)) or steps < 2:
        raise ValueError(
            f"steps must be an integer >= 2: got {short(steps)}; use for example {STEPS}."
        )


@partial(jax.jit, static_argnames="steps")
def _zoom(image: Array, amount: ArrayLike, *, steps: int) -> Array:
    def blur(one: Array, amount: Array) -> Array:
        magnification = 1 + amount * np.linspace(0, 1, steps, dtype=np.float32)
        rows, columns = (_magnified(length, magnification) for length in one.shape[:2])
        return jnp.where(amount > 0, mean_resampled(one, rows, columns), one)

    amount = jnp.asarray(amount).astype(jnp.promote_types(image.dtype, jnp.float32))
    return map_images(blur, image, jnp.broadcast_to(amount, image.shape[:-3]))


def _magnified(length: int, magnification: Float[Array, " n"]) -> Float[Array, "n {length}"]:
    """Where each pixel along a side comes from."""
    centre = (length - 1) / 2
    return centre + (jnp.arange(length) - centre) / magnification[:, None]


def _read(image: Array, place: Array, axis: int) -> Array:
    last = image.shape[axis] - 1
    place = jnp.clip(place, 0, last)
    before = jnp.floor(place).astype(jnp.int32)
    share = jnp.expand_dims(place - before, (1, 2) if axis == 0 else (0, 2))
    first = jnp.take(image, before, axis)
    second = jnp.take(image, jnp.minimum(before + 1, last), axis)
    return first + share * (second - first)
