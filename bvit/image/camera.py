"""The blurs of a camera beyond the Gaussian: motion, camera shake, defocus, box, slanted Gaussian.

Each has its parameters for each image, and a `random_` form that draws them. The border is mirrored
without repeating the edge pixel, sums are taken in float32 at least, strength 0 leaves an image
exactly as it is. The kernels themselves, for deblurring, are in `bvit.image.kernels`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from bvit.image.batching import Keys, image_keys, map_images
from bvit.image.checks import check_kernel_size, check_one_each, check_range, check_strength
from bvit.image.draws import split_each, uniform_each
from bvit.image.fourier import convolve_one, one_each
from bvit.image.kernels import disk_kernel, gaussian_kernel, motion_kernel, shake_kernel
from bvit.image.pixels import check_image
from bvit.image.separable import filter_both_axes

Image = Float[ArrayLike, "*b h w c"]
Each = Real[ArrayLike, "*#b"]
Range = tuple[float, float]


def motion_blur(
    image: Image, length: Each, angle: Each = 0.0, *, bend: Each = 0.0, kernel_size: int = 31
) -> Float[Array, "*b h w c"]:
    """Blurs each image as if the camera had moved, along a line or an arc.

    Args:
      image: grey or RGB in [0, 1], any leading batch axes.
      length: of the path in pixels, from 0 to kernel_size - 1: one for all images, or one each.
      angle: its direction halfway, in degrees, counterclockwise from the horizontal.
      bend: by how many degrees the direction turns on the way; 0 is straight.
      kernel_size: side of the kernel, odd; static.

    Returns:
      The blurred images, with the shape and dtype of `image`; differentiable by all parameters.

    Raises:
      ValueError: not an image; a length that is negative or leaves the kernel; parameters that are
        not one for each image; a kernel that is even or reaches further than the mirrored image.
    """
    batch = _check(image, kernel_size)
    check_strength("length", length, batch, highest=kernel_size - 1)
    check_one_each("angle", angle, batch)
    check_one_each("bend", bend, batch)
    return _motion(image, length, angle, bend, kernel_size=kernel_size)


def random_motion_blur(
    key: Keys,
    image: Image,
    *,
    length_range: Range = (5.0, 15.0),
    angle_range: Range = (-90.0, 90.0),
    bend_range: Range = (0.0, 0.0),
    kernel_size: int = 31,
    probability: float = 1.0,
) -> Float[Array, "*b h w c"]:
    """Blurs each image by `motion_blur`, with parameters of its own drawn uniformly.

    Args:
      key: one PRNG key, or one for each image, as in `random_gaussian_blur`.
      image: grey or RGB in [0, 1], any leading batch axes.
      length_range: shortest and longest path, in pixels.
      angle_range: least and largest angle, in degrees.
      bend_range: least and largest bend, in degrees.
      kernel_size: side of the kernel, odd; static.
      probability: with which each image is blurred; otherwise it is left exactly as it is.

    Returns:
      Images of the shape and dtype of `image`.

    Raises:
      ValueError: as `motion_blur`; a reversed range; a probability outside [0, 1]; keys that are
        neither one nor one for each image.
    """
    _check(image, kernel_size)
    check_range("length_range", length_range, highest=kernel_size - 1)
    ranges = {"length_range": length_range, "angle_range": angle_range, "bend_range": bend_range}
    draws = uniform_each(key, image, ranges, probability)
    return _motion(image, *draws, kernel_size=kernel_size)


def random_shake_blur(
    key: Keys,
    image: Image,
    *,
    length_range: Range = (5.0, 25.0),
    kernel_size: int = 31,
    probability: float = 1.0,
) -> Float[Array, "*b h w c"]:
    """Blurs each image as a hand-held camera does: along a random curve, see `shake_kernel`.

    Args:
      key: one PRNG key, or one for each image, as in `random_gaussian_blur`.
      image: grey or RGB in [0, 1], any leading batch axes.
      length_range: shortest and longest path, in pixels, up to kernel_size - 1.
      kernel_size: side of the kernel, odd; static.
      probability: with which each image is blurred; otherwise it is left exactly as it is.

    Returns:
      Images of the shape and dtype of `image`.

    Raises:
      ValueError: as `random_motion_blur`.
    """
    batch = _check(image, kernel_size)
    check_range("length_range", length_range, highest=kernel_size - 1)
    path_keys, keys = split_each(image_keys(key, batch))
    (length,) = uniform_each(keys, image, {"length_range": length_range}, probability)
    return _shake(path_keys, image, length, kernel_size=kernel_size)


def defocus_blur(image: Image, radius: Each, *, kernel_size: int = 21) -> Float[Array, "*b h w c"]:
    """Blurs each image as a lens out of focus does: with a disk, its edge anti-aliased.

    Args:
      image: grey or RGB in [0, 1], any leading batch axes.
      radius: of the disk in pixels, from 0 to kernel_size // 2: one for all images, or one each.
        Up to 1/2 the disk is a single pixel.
      kernel_size: side of the kernel, odd; static.

    Returns:
      The blurred images, with the shape and dtype of `image`.

    Raises:
      ValueError: not an image; a radius that is negative, leaves the kernel, or is not one for each
        image; a kernel that is even or reaches further than the mirrored image.
    """
    batch = _check(image, kernel_size)
    check_strength("radius", radius, batch, highest=kernel_size // 2)
    return _defocus(image, radius, kernel_size=kernel_size)


def random_defocus_blur(
    key: Keys,
    image: Image,
    *,
    radius_range: Range = (2.0, 6.0),
    kernel_size: int = 21,
    probability: float = 1.0,
) -> Float[Array, "*b h w c"]:
    """Blurs each image by `defocus_blur`, with a radius of its own drawn uniformly.

    Args:
      key: one PRNG key, or one for each image, as in `random_gaussian_blur`.
      image: grey or RGB in [0, 1], any leading batch axes.
      radius_range: smallest and largest radius, in pixels.
      kernel_size: side of the kernel, odd; static.
      probability: with which each image is blurred; otherwise it is left exactly as it is.

    Returns:
      Images of the shape and dtype of `image`.

    Raises:
      ValueError: as `defocus_blur` and `random_motion_blur`.
    """
    _check(image, kernel_size)
    check_range("radius_range", radius_range, highest=kernel_size // 2)
    (radius,) = uniform_each(key, image, {"radius_range": radius_range}, probability)
    return _defocus(image, radius, kernel_size=kernel_size)


def box_blur(image: Image, width: Each, *, kernel_size: int = 19) -> Float[Array, "*b h w c"]:
    """Replaces each pixel by the mean over a square around it.

    Args:
      image: grey or RGB in [0, 1], any leading batch axes.
      width: side of the square in pixels, from 0 to kernel_size: one for all images, or one each.
        Pixels that it covers in part count in part; up to 1 it leaves an image as it is. At odd
        widths the same as cv2.blur.
      kernel_size: side of the kernel, odd; static.

    Returns:
      The blurred images, with the shape and dtype of `image`.

    Raises:
      ValueError: not an image; a width that is negative, leaves the kernel, or is not one for each
        image; a kernel that is even or reaches further than the mirrored image.
    """
    batch = _check(image, kernel_size)
    check_strength("width", width, batch, highest=kernel_size)
    return _box(image, width, kernel_size=kernel_size)


def random_box_blur(
    key: Keys,
    image: Image,
    *,
    width_range: Range = (3.0, 9.0),
    kernel_size: int = 19,
    probability: float = 1.0,
) -> Float[Array, "*b h w c"]:
    """Blurs each image by `box_blur`, with a width of its own drawn uniformly.

    Args:
      key: one PRNG key, or one for each image, as in `random_gaussian_blur`.
      image: grey or RGB in [0, 1], any leading batch axes.
      width_range: smallest and largest width, in pixels.
      kernel_size: side of the kernel, odd; static.
      probability: with which each image is blurred; otherwise it is left exactly as it is.

    Returns:
      Images of the shape and dtype of `image`.

    Raises:
      ValueError: as `box_blur` and `random_motion_blur`.
    """
    _check(image, kernel_size)
    check_range("width_range", width_range, highest=kernel_size)
    (width,) = uniform_each(key, image, {"width_range": width_range}, probability)
    return _box(image, width, kernel_size=kernel_size)


def anisotropic_gaussian_blur(
    image: Image,
    sigma_along: Each,
    sigma_across: Each,
    angle: Each = 0.0,
    *,
    kernel_size: int = 19,
) -> Float[Array, "*b h w c"]:
    """Blurs each image with a Gaussian that is wider along one direction than across it.

    Args:
      image: grey or RGB in [0, 1], any leading batch axes.
      sigma_along: standard deviation along the angle in pixels, >= 0: one for all images, or one
        each.
      sigma_across: standard deviation across it, >= 0.
      angle: in degrees, counterclockwise from the horizontal.
      kernel_size: side of the kernel, odd; static. It cuts the Gaussian off.

    Returns:
      The blurred images, with the shape and dtype of `image`.

    Raises:
      ValueError: not an image; a sigma that is negative; parameters that are not one for each
        image; a kernel that is even or reaches further than the mirrored image.
    """
    batch = _check(image, kernel_size)
    check_strength("sigma_along", sigma_along, batch)
    check_strength("sigma_across", sigma_across, batch)
    check_one_each("angle", angle, batch)
    return _anisotropic(image, sigma_along, sigma_across, angle, kernel_size=kernel_size)


def random_anisotropic_gaussian_blur(
    key: Keys,
    image: Image,
    *,
    sigma_along_range: Range = (2.0, 4.0),
    sigma_across_range: Range = (0.5, 2.0),
    angle_range: Range = (-90.0, 90.0),
    kernel_size: int = 19,
    probability: float = 1.0,
) -> Float[Array, "*b h w c"]:
    """Blurs each image by `anisotropic_gaussian_blur`, its parameters drawn uniformly.

    Args:
      key: one PRNG key, or one for each image, as in `random_gaussian_blur`.
      image: grey or RGB in [0, 1], any leading batch axes.
      sigma_along_range: lowest and highest sigma along the angle, in pixels.
      sigma_across_range: lowest and highest sigma across it.
      angle_range: least and largest angle, in degrees.
      kernel_size: side of the kernel, odd; static.
      probability: with which each image is blurred; otherwise it is left exactly as it is.

    Returns:
      Images of the shape and dtype of `image`.

    Raises:
      ValueError: as `anisotropic_gaussian_blur` and `random_motion_blur`.
    """
    _check(image, kernel_size)
    check_range("sigma_along_range", sigma_along_range)
    check_range("sigma_across_range", sigma_across_range)
    ranges = {
        "sigma_along_range": sigma_along_range,
        "sigma_across_range": sigma_across_range,
        "angle_range": angle_range,
    }
    draws = uniform_each(key, image, ranges, probability)
    return _anisotropic(image, *draws, kernel_size=kernel_size)


def _check(image: ArrayLike, kernel_size: int) -> tuple[int, ...]:
    check_image(image)
    check_kernel_size(kernel_size, np.shape(image))
    return np.shape(image)[:-3]


@partial(jax.jit, static_argnames="kernel_size")
def _motion(image: Array, length: Each, angle: Each, bend: Each, *, kernel_size: int) -> Array:
    kernel = motion_kernel(length, angle, bend, kernel_size=kernel_size)
    return _convolved_where(image, kernel, length)


@partial(jax.jit, static_argnames="kernel_size")
def _shake(keys: Array, image: Array, length: Each, *, kernel_size: int) -> Array:
    return _convolved_where(image, shake_kernel(keys, length, kernel_size=kernel_size), length)


@partial(jax.jit, static_argnames="kernel_size")
def _defocus(image: Array, radius: Each, *, kernel_size: int) -> Array:
    return _convolved_where(image, disk_kernel(radius, kernel_size=kernel_size), radius)


@partial(jax.jit, static_argnames="kernel_size")
def _anisotropic(
    image: Array, sigma_along: Each, sigma_across: Each, angle: Each, *, kernel_size: int
) -> Array:
    kernel = gaussian_kernel(sigma_along, sigma_across, angle, kernel_size=kernel_size)
    return _convolved_where(image, kernel, jnp.maximum(sigma_along, sigma_across))


@partial(jax.jit, static_argnames="kernel_size")
def _box(image: Array, width: Each, *, kernel_size: int) -> Array:
    def blur(one: Array, width: Array) -> Array:
        distance = np.arange(kernel_size // 2 + 1)
        covered = jnp.clip(width / 2 + 0.5 - distance, 0, 1)
        return filter_both_axes(one, covered / (covered[0] + 2 * covered[1:].sum()))

    width = jnp.asarray(width).astype(jnp.promote_types(image.dtype, jnp.float32))
    return map_images(blur, image, jnp.broadcast_to(width, image.shape[:-3]))


def _convolved_where(image: Array, kernel: Array, strength: Each) -> Array:
    """The convolved image where its strength is above 0; elsewhere the image to the last bit."""

    def blur(one: Array, kernel: Array, strength: Array) -> Array:
        return jnp.where(strength > 0, convolve_one(one, kernel), one)

    strength = jnp.broadcast_to(strength, image.shape[:-3])
    return map_images(blur, image, one_each(kernel, image), strength)
