"""Gaussian blur: with a given sigma, a random one, or in random regions of each image."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key

from bvit.image.batching import image_keys, map_images
from bvit.image.pixels import check_image

# A Gaussian narrower than this is one pixel wide: exp(-1 / (2 * 0.02^2)) is 0 in float32 and in
# float64. Clipping sigma here makes sigma = 0 the exact identity, with a gradient of 0, not NaN.
NARROWEST_SIGMA = 0.02

# A region's outline follows smooth noise drawn on this many points along each side: a handful of
# blobs an image, about the size of the objects in a photograph.
REGION_NOISE_POINTS = 6

# Halvings of the interval in which the region's threshold is sought: the values of the noise are
# then told apart finely enough to hit the drawn area to within about a pixel in 512 x 512.
AREA_BISECTIONS = 20


def gaussian_blur(
    image: Float[ArrayLike, "*b h w c"],
    sigma: float | Float[ArrayLike, "*b"],
    *,
    kernel_size: int = 19,
) -> Float[Array, "*b h w c"]:
    """Blurs each image with a Gaussian of its own width.

    Separable; taps exp(-t^2 / (2 sigma^2)) at t = -(k-1)/2 .. (k-1)/2, normalised to sum 1; the
    border is mirrored without repeating the edge pixel. The same as torchvision's GaussianBlur
    (the default k = 19 is that of the paper this project follows) and cv2.BORDER_REFLECT_101.
    Sums are taken in float32 at least.

    Args:
      image: grey or RGB in [0, 1], any leading batch axes.
      sigma: standard deviation in pixels, >= 0: one for all images, or one each. 0 leaves an image
        exactly as it is. A traced value can't be checked; a negative one counts as 0.
      kernel_size: number of taps, odd; static. The kernel is cut off at its ends, so that a sigma
        above about kernel_size / 6 is no longer quite a Gaussian.

    Returns:
      The blurred images, with the shape and dtype of `image`. Differentiable by image and sigma.

    Raises:
      ValueError: not an image; a sigma that is negative, NaN, or not one for each image; a kernel
        that is even or reaches further than the mirrored image.
    """
    check_image(image)
    _check_kernel_size(kernel_size, np.shape(image))
    _check_sigma(sigma, np.shape(image)[:-3])
    return _blur(image, jnp.asarray(sigma), kernel_size=kernel_size)


def random_gaussian_blur(
    key: Key[Array, "*b"],
    image: Float[ArrayLike, "*b h w c"],
    *,
    sigma_range: tuple[float, float] = (1.0, 2.0),
    kernel_size: int = 19,
    probability: float = 1.0,
) -> Float[Array, "*b h w c"]:
    """Blurs each image by `gaussian_blur`, with a sigma of its own drawn uniformly.

    Args:
      key: one PRNG key, or one for each image; with one, image i of the batch (counted row by row)
        draws from fold_in(key, i), so that its sigma depends neither on the batch's size nor on
        the other images. A picture without batch axes draws from the key itself.
      image: grey or RGB in [0, 1], any leading batch axes.
      sigma_range: lowest and highest sigma, in pixels; (1, 2) with 19 taps is the paper's blur.
      kernel_size: number of taps, odd; static.
      probability: with which each image is blurred; otherwise it is left exactly as it is.

    Returns:
      Images of the shape and dtype of `image`.

    Raises:
      ValueError: as `gaussian_blur`; a range that is reversed or negative; a probability outside
        [0, 1]; keys that are neither one nor one for each image.
    """
    check_image(image)
    _check_kernel_size(kernel_size, np.shape(image))
    _check_range("sigma_range", sigma_range, highest=math.inf)
    _check_range("probability", (probability, probability), highest=1.0)
    keys = image_keys(key, np.shape(image)[:-3])
    return _random_blur(keys, image, sigma_range, probability, kernel_size=kernel_size)


def region_blur(
    key: Key[Array, "*b"],
    image: Float[ArrayLike, "*b h w c"],
    *,
    sigma_range: tuple[float, float] = (2.0, 4.0),
    area_range: tuple[float, float] = (0.3, 0.7),
    kernel_size: int = 19,
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
      return_map: whether to return the true blur map too; static.

    Returns:
      Images of the shape and dtype of `image`; with `return_map`, also the map [*b, h, w], float32:
      the sigma in pixels by which each pixel was blurred, 0 where it is untouched (so that
      `map > 0` is the region).

    Raises:
      ValueError: as `random_gaussian_blur`; an area range outside [0, 1].
    """
    check_image(image)
    _check_kernel_size(kernel_size, np.shape(image))
    _check_range("sigma_range", sigma_range, highest=math.inf)
    _check_range("area_range", area_range, highest=1.0)
    keys = image_keys(key, np.shape(image)[:-3])
    blurred, sigma_map = _region_blur(keys, image, sigma_range, area_range, kernel_size=kernel_size)
    return (blurred, sigma_map) if return_map else blurred


@partial(jax.jit, static_argnames="kernel_size")
def _blur(image, sigma, *, kernel_size):
    sigma = jnp.broadcast_to(sigma, image.shape[:-3])
    return map_images(partial(_blur_one, kernel_size=kernel_size), image, sigma)


@partial(jax.jit, static_argnames="kernel_size")
def _random_blur(keys, image, sigma_range, probability, *, kernel_size):
    def blur(one, key):
        sigma_key, coin_key = jax.random.split(key)
        chosen = _uniform(coin_key, (0.0, 1.0)) < probability
        sigma = jnp.where(chosen, _uniform(sigma_key, sigma_range), 0.0)
        return _blur_one(one, sigma, kernel_size=kernel_size)

    return map_images(blur, image, keys)


@partial(jax.jit, static_argnames="kernel_size")
def _region_blur(keys, image, sigma_range, area_range, *, kernel_size):
    def blur(one, key):
        sigma_key, area_key, noise_key = jax.random.split(key, 3)
        sigma = _uniform(sigma_key, sigma_range)
        region = _smooth_region(noise_key, _uniform(area_key, area_range), one.shape[:2])
        blurred = _blur_one(one, sigma, kernel_size=kernel_size)
        return jnp.where(region[..., None], blurred, one), jnp.where(region, sigma, 0.0)

    return map_images(blur, image, keys)


def _uniform(key, bounds):
    return jax.random.uniform(key, dtype=jnp.float32, minval=bounds[0], maxval=bounds[1])


def _blur_one(image, sigma, *, kernel_size):
    """Two passes over one image, as [h, w*c], where one pixel to the right is c values away."""
    height, width, channels = image.shape
    radius = kernel_size // 2
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    taps = _half_gaussian(sigma.astype(dtype), radius)
    rows = jnp.pad(image.astype(dtype), [(radius, radius), (0, 0), (0, 0)], mode="reflect")
    rows = _convolve(rows.reshape(-1, width * channels), taps, axis=0, stride=1)
    columns = rows.reshape(image.shape)
    columns = jnp.pad(columns, [(0, 0), (radius, radius), (0, 0)], mode="reflect")
    columns = _convolve(columns.reshape(height, -1), taps, axis=1, stride=channels)
    return columns.reshape(image.shape).astype(image.dtype)


def _half_gaussian(sigma, radius):
    """Weights of the taps at 0, 1 .. radius; those at -1 .. -radius are the same."""
    distance = jnp.arange(radius + 1, dtype=sigma.dtype)
    weights = jnp.exp(-0.5 * jnp.square(distance / jnp.maximum(sigma, NARROWEST_SIGMA)))
    return weights / (weights[0] + 2 * jnp.sum(weights[1:]))


def _convolve(padded, taps, *, axis, stride):
    """Valid convolution along an axis; taps that mirror each other share a multiplication."""
    radius = taps.size - 1
    size = padded.shape[axis] - 2 * radius * stride

    def shifted(steps):
        start = (radius + steps) * stride
        return lax.slice_in_dim(padded, start, start + size, axis=axis)

    total = taps[0] * shifted(0)
    for distance in range(1, radius + 1):
        total = total + taps[distance] * (shifted(-distance) + shifted(distance))
    return total


def _smooth_region(key, area, shape):
    """True where smooth noise is highest, over `area` (a share) of the image."""
    noise = jax.random.normal(key, (REGION_NOISE_POINTS, REGION_NOISE_POINTS), jnp.float32)
    noise = jax.image.resize(noise, shape, method="cubic")
    wanted = jnp.round(area * noise.size).astype(jnp.int32)

    # Bisection, since sorting every pixel takes ten times as long as blurring them.
    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        too_many = jnp.sum(noise > middle, dtype=jnp.int32) > wanted
        return jnp.where(too_many, middle, low), jnp.where(too_many, high, middle)

    # At `high` there are never too many; 1 below the lowest, all can be taken.
    bounds = (jnp.min(noise) - 1, jnp.max(noise))
    _, threshold = lax.fori_loop(0, AREA_BISECTIONS, halve, bounds)
    return noise > threshold


def _check_kernel_size(kernel_size: int, shape: tuple[int, ...]) -> None:
    if not isinstance(kernel_size, (int, np.integer)) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size must be an odd integer >= 1: got {kernel_size}; use for example 19."
        )
    height, width = shape[-3:-1]
    if kernel_size // 2 >= min(height, width):
        raise ValueError(
            f"the blur mirrors kernel_size // 2 = {kernel_size // 2} pixels at each border, and so "
            f"needs an image of at least one more: got image {height}x{width}, "
            f"kernel_size={kernel_size}; use at most {2 * min(height, width) - 1}."
        )


def _check_sigma(sigma, batch: tuple[int, ...]) -> None:
    if np.shape(sigma) not in ((), batch):
        raise ValueError(
            f"sigma must be one number, or one for each image: got shape {np.shape(sigma)} for "
            f"images of batch shape {batch}."
        )
    if not isinstance(sigma, jax.core.Tracer) and not np.all(np.asarray(sigma) >= 0):
        raise ValueError(f"sigma must be >= 0 (0 leaves the image as it is): got {sigma}.")


def _check_range(name: str, bounds, *, highest: float) -> None:
    low, high = bounds
    if isinstance(low, jax.core.Tracer) or isinstance(high, jax.core.Tracer):
        return
    if not 0 <= low <= high <= highest:
        raise ValueError(
            f"{name} must be within 0 and {highest}, the lower bound first: got {bounds}."
        )
