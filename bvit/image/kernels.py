"""Point spread functions: what a camera makes of a point of light, one kernel for each image.

Each takes numbers or arrays of them (floating or integer, [*b]) and gives float32 kernels
[*b, k, k] of sum 1, whose centre of gravity is the centre, differentiable by their parameters. At
strength 0 they are a single pixel. Angles are in degrees, counterclockwise from the horizontal.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, Real

from bvit.image.batching import vmap_batch
from bvit.image.checks import check_odd
from bvit.image.separable import NARROWEST_SIGMA

# A path is followed in this many steps: up to lengths of 60 pixels less than half a pixel each, and
# each step is spread over two pixels along either axis.
PATH_POINTS = 128

# How much a hand's velocity changes over an exposure, beside what it is at its beginning: paths
# bend, and some turn back, as do those that Levin et al. 2009 measured.
SHAKE_UNREST = 2.0


def gaussian_kernel(
    sigma_along: Real[ArrayLike, "*#b"],
    sigma_across: Real[ArrayLike, "*#b"] | None = None,
    angle: Real[ArrayLike, "*#b"] = 0.0,
    *,
    kernel_size: int = 19,
) -> Float[Array, "*b {kernel_size} {kernel_size}"]:
    """A Gaussian of one width along an angle and another across it, sampled at the pixels.

    Args:
      sigma_along: standard deviation along the angle in pixels, >= 0.
      sigma_across: standard deviation across it; by default the same, which is `gaussian_blur`'s.
      angle: in degrees.
      kernel_size: side of the kernel, odd; static. It cuts the Gaussian off.

    Raises:
      ValueError: an even kernel.
    """
    check_odd(kernel_size)
    sigma_across = sigma_along if sigma_across is None else sigma_across
    along, across, angle = (_floats(x)[..., None, None] for x in (sigma_along, sigma_across, angle))
    up, right = _offsets(kernel_size)
    cosine, sine = jnp.cos(jnp.radians(angle)), jnp.sin(jnp.radians(angle))
    u = (right * cosine + up * sine) / jnp.maximum(along, NARROWEST_SIGMA)
    v = (up * cosine - right * sine) / jnp.maximum(across, NARROWEST_SIGMA)
    return _normalized(jnp.exp(-0.5 * (u * u + v * v)))


def disk_kernel(
    radius: Real[ArrayLike, "*#b"], *, kernel_size: int = 21
) -> Float[Array, "*b {kernel_size} {kernel_size}"]:
    """A disk with an anti-aliased edge: what an open aperture makes of a point out of focus.

    A pixel at distance d of the centre weighs radius + 1/2 - d, within 0 and 1.

    Args:
      radius: in pixels, from 0 to kernel_size // 2; up to 1/2 the disk is a single pixel.
      kernel_size: side of the kernel, odd; static.

    Raises:
      ValueError: an even kernel.
    """
    check_odd(kernel_size)
    up, right = _offsets(kernel_size)
    distance = np.hypot(up, right)
    return _normalized(jnp.clip(_floats(radius)[..., None, None] + 0.5 - distance, 0, 1))


def motion_kernel(
    length: Real[ArrayLike, "*#b"],
    angle: Real[ArrayLike, "*#b"] = 0.0,
    bend: Real[ArrayLike, "*#b"] = 0.0,
    *,
    kernel_size: int = 31,
) -> Float[Array, "*b {kernel_size} {kernel_size}"]:
    """The path of a camera that moves evenly along a straight line, or along an arc of a circle.

    Args:
      length: of the path in pixels, from 0 to kernel_size - 1.
      angle: its direction halfway, in degrees.
      bend: by how many degrees it turns on its way; 0 is straight.
      kernel_size: side of the kernel, odd; static.

    Raises:
      ValueError: an even kernel.
    """
    length, angle, bend = (_floats(x)[..., None] for x in (length, angle, bend))
    time = (np.arange(PATH_POINTS, dtype=np.float32) + 0.5) / PATH_POINTS - 0.5
    turned = jnp.radians(bend) * time
    # The integrals of cos(turned) and sin(turned) over time; written by sinc, as the bend may be 0.
    along = length * time * jnp.sinc(turned / np.pi)
    across = length * time * jnp.sin(turned / 2) * jnp.sinc(turned / (2 * np.pi))
    cosine, sine = jnp.cos(jnp.radians(angle)), jnp.sin(jnp.radians(angle))
    up, right = along * sine + across * cosine, along * cosine - across * sine
    return path_kernel(jnp.stack([-up, right], axis=-1), kernel_size=kernel_size)


def shake_kernel(
    key: Key[Array, "*b"], length: Real[ArrayLike, "*#b"], *, kernel_size: int = 31
) -> Float[Array, "*b {kernel_size} {kernel_size}"]:
    """The path of a hand-held camera: it drifts, and its velocity does a random walk.

    Similar to Boracchi and Foi 2012, "Modeling the performance of image restoration from motion
    blur", with fewer parameters.

    Args:
      key: PRNG keys (typed), one for each kernel.
      length: of the path in pixels, from 0 to kernel_size - 1.
      kernel_size: side of the kernel, odd; static.

    Raises:
      ValueError: an even kernel.
    """
    walk = vmap_batch(_unit_walk, key.shape)(key)
    return path_kernel(_floats(length)[..., None, None] * walk, kernel_size=kernel_size)


def path_kernel(
    path: Float[ArrayLike, "*b n 2"], *, kernel_size: int
) -> Float[Array, "*b {kernel_size} {kernel_size}"]:
    """What a camera makes of a point while it moves along a path, for the same time at each step.

    Each point is spread over the four pixels around it, as in linear interpolation. The path is
    moved so that its mean is the centre; what leaves the kernel is cut off.

    Args:
      path: points (row, column) in pixels.
      kernel_size: side of the kernel, odd; static.

    Raises:
      ValueError: an even kernel.
    """
    check_odd(kernel_size)
    points = _floats(path)
    points = points - points.mean(-2, keepdims=True)
    place = np.arange(kernel_size, dtype=np.float32) - kernel_size // 2
    row, column = (jnp.maximum(1 - jnp.abs(points[..., i, None] - place), 0) for i in (0, 1))
    highest = jax.lax.Precision.HIGHEST
    return _normalized(jnp.einsum("...pi,...pj->...ij", row, column, precision=highest))


def _unit_walk(key: Array) -> Float[Array, "points 2"]:
    """A path of length 1, [PATH_POINTS, 2]."""
    start_key, change_key = jax.random.split(key)
    start = jax.random.normal(start_key, (2,), jnp.float32)
    changes = jax.random.normal(change_key, (PATH_POINTS, 2), jnp.float32)
    velocity = start + SHAKE_UNREST * jnp.cumsum(changes, axis=0) / np.sqrt(PATH_POINTS)
    return jnp.cumsum(velocity, axis=0) / jnp.linalg.norm(velocity, axis=-1).sum()


def _offsets(kernel_size: int) -> tuple[np.ndarray, np.ndarray]:
    """How far up and how far to the right of the centre each pixel is: [k, 1] and [1, k]."""
    right = np.arange(kernel_size, dtype=np.float32) - kernel_size // 2
    return -right[:, None], right[None]


def _normalized(kernel: Array) -> Array:
    return kernel / kernel.sum((-2, -1), keepdims=True)


def _floats(x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
