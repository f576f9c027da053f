"""Glass blur: as through frosted glass, each point appears somewhere near its place."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Key, Real

from bvit.image.batching import Keys, image_keys, map_images
from bvit.image.checks import check_kernel_size, check_range, check_strength, short
from bvit.image.draws import split_each, uniform_each
from bvit.image.pixels import check_image
from bvit.image.separable import filter_both_axes, half_gaussian


def glass_blur(
    key: Keys,
    image: Float[ArrayLike, "*b h w c"],
    sigma: Real[ArrayLike, "*#b"],
    *,
    max_shift: int = 2,
    rounds: int = 2,
    kernel_size: int = 11,
) -> Float[Array, "*b h w c"]:
    """A Gaussian blur, then pixels replaced by others nearby, then the blur again.

    The pixels move as in ImageNet-C (Hendrycks and Dietterich 2019), whose loop goes from the last
    pixel to the first: each takes the present value of one up to max_shift away, drawn at random.
    (It is written as a swap, but assigns to a view, and so copies.) Pixels at the border stay.

    Args:
      key: one PRNG key, or one for each image, as in `random_gaussian_blur`.
      image: grey or RGB in [0, 1], any leading batch axes; the border is mirrored without repeating
        the edge pixel.
      sigma: of the Gaussian in pixels, >= 0: one for all images, or one each. At 0 nothing moves
        either.
      max_shift: in pixels; draws are from -max_shift to max_shift - 1 along both axes; static.
      rounds: how often all pixels move; static.
      kernel_size: number of taps of the Gaussian, odd; static.

    Returns:
      The blurred images, with the shape and dtype of `image`; differentiable by image and sigma.

    Raises:
      ValueError: not an image; a sigma that is negative, or not one for each image; a shift below
        1 or no rounds; a kernel as in `gaussian_blur`; keys that are neither one nor one each.
    """
    batch = _check(image, max_shift, rounds, kernel_size)
    check_strength("sigma", sigma, batch)
    keys = image_keys(key, batch)
    return _glass(keys, image, sigma, max_shift=max_shift, rounds=rounds, kernel_size=kernel_size)


def random_glass_blur(
    key: Keys,
    image: Float[ArrayLike, "*b h w c"],
    *,
    sigma_range: tuple[float, float] = (0.7, 1.5),
    max_shift: int = 2,
    rounds: int = 2,
    kernel_size: int = 11,
    probability: float = 1.0,
) -> Float[Array, "*b h w c"]:
    """Blurs each image by `glass_blur`, with a sigma of its own drawn uniformly.

    Args:
      key: one PRNG key, or one for each image, as in `random_gaussian_blur`.
      image: grey or RGB in [0, 1], any leading batch axes.
      sigma_range: lowest and highest sigma, in pixels.
      max_shift: as in `glass_blur`; static.
      rounds: as in `glass_blur`; static.
      kernel_size: number of taps of the Gaussian, odd; static.
      probability: with which each image is blurred; otherwise it is left exactly as it is.

    Returns:
      Images of the shape and dtype of `image`.

    Raises:
      ValueError: as `glass_blur`; a reversed range; a probability outside [0, 1].
    """
    batch = _check(image, max_shift, rounds, kernel_size)
    check_range("sigma_range", sigma_range)
    move_keys, keys = split_each(image_keys(key, batch))
    (sigma,) = uniform_each(keys, image, {"sigma_range": sigma_range}, probability)
    return _glass(
        move_keys, image, sigma, max_shift=max_shift, rounds=rounds, kernel_size=kernel_size
    )


def move_pixels(
    key: Key[Array, ""], image: Float[Array, "h w c"], *, max_shift: int, rounds: int
) -> Float[Array, "h w c"]:
    """Replaces the pixels of one image by others nearby, as in `glass_blur`."""
    shape = image.shape[:2]
    shifts = jax.random.randint(key, (rounds, *shape, 2), -max_shift, max_shift)
    source = jnp.arange(shape[0] * shape[1])
    for shift in shifts:
        source = source[pixel_sources(shift, max_shift)]
    return image.reshape(source.size, -1)[source].reshape(image.shape)


def pixel_sources(shift: Int[Array, "h w 2"], max_shift: int) -> Int[Array, " h*w"]:
    """Where each pixel's value comes from once all have moved, from the last to the first.

    A pixel that reads one which has moved before follows it, and that one perhaps another. All
    follow at once: reading the table at its own entries doubles the steps that each entry spans.

    Args:
      shift: (rows, columns) to the pixel that each one reads, from -max_shift to max_shift - 1.
      max_shift: how wide a border stays as it is.
    """
    height, width = shift.shape[:2]
    row, column = jnp.indices((height, width))
    moves = (row > max_shift) & (row <= height - max_shift)
    moves &= (column > max_shift) & (column <= width - max_shift)
    place = row * width + column
    read = place + jnp.where(moves, shift[..., 0] * width + shift[..., 1], 0)
    has_moved = moves.ravel()[read] & (read > place)
    # Entries below `count` are pixels still to be followed; above it, those as they were.
    count = height * width
    table = jnp.where(has_moved, read, count + read).ravel()

    def follow(table: Array) -> Array:
        return jnp.where(table < count, table[jnp.minimum(table, count - 1)], table)

    return lax.while_loop(lambda table: (table < count).any(), follow, table) - count


def _check(image: ArrayLike, max_shift: int, rounds: int, kernel_size: int) -> tuple[int, ...]:
    check_image(image)
    check_kernel_size(kernel_size, np.shape(image))
    for name, value in (("max_shift", max_shift), ("rounds", rounds)):
        if not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(
                f"{name} must be an integer >= 1: got {short(value)}; use for example 2."
            )
    return np.shape(image)[:-3]


@partial(jax.jit, static_argnames=("max_shift", "rounds", "kernel_size"))
def _glass(
    keys: Array, image: Array, sigma: ArrayLike, *, max_shift: int, rounds: int, kernel_size: int
) -> Array:
    def blur(one: Array, key: Array, sigma: Array) -> Array:
        taps = half_gaussian(sigma, kernel_size // 2)
        moved = move_pixels(key, filter_both_axes(one, taps), max_shift=max_shift, rounds=rounds)
        return jnp.where(sigma > 0, filter_both_axes(moved, taps), one)

    sigma = jnp.asarray(sigma).astype(jnp.promote_types(image.dtype, jnp.float32))
    return map_images(blur, image, keys, jnp.broadcast_to(sigma, image.shape[:-3]))
