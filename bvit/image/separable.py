"""Filters that are the same along rows and columns, and symmetric: Gaussian and box."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# A Gaussian narrower than this is one pixel wide: exp(-1 / (2 * 0.02^2)) is 0 in float32 and in
# float64. Clipping sigma here makes sigma = 0 the exact identity, with a gradient of 0, not NaN.
NARROWEST_SIGMA = 0.02


def half_gaussian(sigma: Float[Array, "*p"], radius: int) -> Float[Array, "*p {radius}+1"]:
    """Weights of the taps at 0, 1 .. radius; with their mirror images at -1 .. -radius, sum 1."""
    distance = jnp.arange(radius + 1, dtype=sigma.dtype)
    weights = jnp.exp(-0.5 * jnp.square(distance / jnp.maximum(sigma, NARROWEST_SIGMA)[..., None]))
    return weights / (weights[..., :1] + 2 * jnp.sum(weights[..., 1:], axis=-1, keepdims=True))


def filter_both_axes(
    image: Float[Array, "h w c"], taps: Float[Array, " taps"], border: str = "reflect"
) -> Float[Array, "h w c"]:
    """Filters one image along both axes.

    Two passes over it as [h, w*c], where one pixel to the right is c values away.

    Args:
      image: one image; if it is mirrored, larger than r along both axes.
      taps: weights at distances 0, 1 .. r in float32 at least, in which sums are taken; those at
        -1 .. -r are the same.
      border: as jnp.pad calls it; "reflect" mirrors without repeating the edge pixel, "edge"
        repeats it. Static.

    Returns:
      The filtered image, in the dtype of `image`.
    """
    height, width, channels = image.shape
    radius = taps.size - 1
    rows = jnp.pad(image.astype(taps.dtype), [(radius, radius), (0, 0), (0, 0)], mode=border)
    rows = _filter_axis(rows.reshape(-1, width * channels), taps, axis=0, stride=1)
    columns = rows.reshape(image.shape)
    columns = jnp.pad(columns, [(0, 0), (radius, radius), (0, 0)], mode=border)
    columns = _filter_axis(columns.reshape(height, -1), taps, axis=1, stride=channels)
    return columns.reshape(image.shape).astype(image.dtype)


def _filter_axis(padded: Array, taps: Array, *, axis: int, stride: int) -> Array:
    """Valid convolution along an axis; taps that mirror each other share a multiplication."""
    radius = taps.size - 1
    size = padded.shape[axis] - 2 * radius * stride

    def shifted(steps: int) -> Array:
        start = (radius + steps) * stride
        return lax.slice_in_dim(padded, start, start + size, axis=axis)

    total = taps[0] * shifted(0)
    for distance in range(1, radius + 1):
        total = total + taps[distance] * (shifted(-distance) + shifted(distance))
    return total
