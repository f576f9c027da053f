"""Deblurring with a known kernel: what classifying blurred images directly saves.

Any kernel will do, such as those of `bvit.image.kernels`. `deblur_gaussian` needs none: it can
estimate the blur.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Real

from bvit.image.batching import map_images
from bvit.image.checks import check_one_each, short
from bvit.image.focus_measures import noise_variance
from bvit.image.fourier import (
    apply_transfer,
    check_kernel,
    extend,
    one_each,
    transfer_function,
    transform_size,
)
from bvit.image.kernels import gaussian_kernel
from bvit.image.pixels import check_image, grayscale
from bvit.image.sigma import NOISE_BLOCK, estimate_sigma

# Richardson-Lucy divides by no less than this: ten times the error of a transform in float32.
LEAST_DIVISOR = 1e-6

# `measured_noise_to_signal` adds this for errors of the kernel, which look like noise. On 500
# training images of Imagenette (72×72, sigma from 1 to 2, no noise but 8 bits) 3e-4 had the least
# squared error where sigma was known, 1e-3 where it was estimated.
LEAST_NOISE_TO_SIGNAL = 1e-3

# The noise of grey that is 1 in each of red, green and blue: the sum of their squared weights.
GREY_NOISE = 0.299**2 + 0.587**2 + 0.114**2

METHODS = ("wiener", "richardson_lucy")


def deblur_gaussian(
    image: Float[ArrayLike, "*b h w 3"],
    sigma: Real[ArrayLike, "*#b"] | None = None,
    *,
    method: str = "wiener",
    kernel_size: int = 19,
) -> Float[Array, "*b h w 3"]:
    """Undoes a Gaussian blur, with the settings that serve classification.

    `wiener` gets the noise that is measured in the image; `richardson_lucy` its default of 30
    steps: with fewer, fewer images were classified correctly.

    Args:
      image: blurred, RGB in [0, 1], any leading batch axes, at least 7 pixels a side.
      sigma: of the blur in pixels, one for all images or one each; None estimates it (blind).
      method: "wiener" or "richardson_lucy"; static.
      kernel_size: number of taps of the blur, odd; static.

    Returns:
      Images of the shape and dtype of `image`, clipped to [0, 1].

    Raises:
      ValueError: not an RGB image, or too small for the kernel; a sigma that is not one for each;
        another method.
    """
    check_image(image, channels=3)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}: got {short(method)}.")
    batch = np.shape(image)[:-3]
    sigma = estimate_sigma(image) if sigma is None else sigma
    check_one_each("sigma", sigma, batch)
    kernel = gaussian_kernel(jnp.broadcast_to(sigma, batch), kernel_size=kernel_size)
    if method == "wiener":
        restored = wiener(image, kernel, noise_to_signal=measured_noise_to_signal(image))
    else:
        restored = richardson_lucy(image, kernel)
    return jnp.clip(restored, 0, 1)


def measured_noise_to_signal(image: Float[ArrayLike, "*b h w 3"]) -> Float[Array, "*b"]:
    """Variance of each image's noise over the variance of the image: what `wiener` asks for.

    The noise is measured in the quietest quarter of the image, as for `estimate_sigma`; 1e-3 is
    added for errors of the kernel.

    Args:
      image: RGB in [0, 1], any leading batch axes.

    Raises:
      ValueError: not an RGB image.
    """
    check_image(image, channels=3)
    return _noise_to_signal(image)


def wiener(
    image: Float[ArrayLike, "*b h w c"],
    kernel: Float[ArrayLike, "*#b s s"],
    *,
    noise_to_signal: Real[ArrayLike, "*#b"] = 0.01,
) -> Float[Array, "*b h w c"]:
    """Undoes a blur in the frequency domain, by H* / (|H|² + noise_to_signal).

    The least squares estimate where noise and image have white spectra of that ratio (Wiener
    1949; Gonzalez and Woods, "Digital Image Processing", eq. 5.8-6). Each image keeps its mean. The
    transform is periodic and the image is not: borders are mirrored by kernel_size - 1 pixels, and
    fade to the mean over them. That took a fifth of the time of mirroring the whole image, and was
    as good or better (by up to 2 dB after motion, whose kernel is not symmetric).

    Args:
      image: blurred, grey or RGB in [0, 1], any leading batch axes.
      kernel: of the blur, sum 1: one kernel [s, s], or one for each image [*b, s, s]; s odd.
      noise_to_signal: > 0, power of the noise over that of the image: one number, or one for each
        image. The larger, the smoother the result.

    Returns:
      Images of the shape and dtype of `image`. They may leave [0, 1] beside strong edges.

    Raises:
      ValueError: not an image; kernels as `convolve` refuses them; a ratio that is not positive, or
        not one for each image.
    """
    check_image(image)
    check_kernel(kernel, np.shape(image))
    check_one_each("noise_to_signal", noise_to_signal, np.shape(image)[:-3])
    on_device = isinstance(noise_to_signal, jax.Array)
    if not on_device and not np.all(np.asarray(noise_to_signal) > 0):
        raise ValueError(
            f"noise_to_signal must be > 0: got {short(noise_to_signal)}; 0 would divide by zero "
            "where the blur removed a frequency. Use for example 0.001 where there is hardly any "
            "noise."
        )
    return _wiener(image, kernel, noise_to_signal)


def richardson_lucy(
    image: Float[ArrayLike, "*b h w c"],
    kernel: Float[ArrayLike, "*#b s s"],
    *,
    iterations: int = 30,
) -> Float[Array, "*b h w c"]:
    """Undoes a blur step by step, by multiplications that keep the image positive.

    Converges to the most likely image under Poisson noise (Richardson 1972; Lucy 1974), starting
    from a flat one; fewer iterations are smoother. Borders are mirrored at each step.

    Args:
      image: blurred, grey or RGB in [0, 1], any leading batch axes.
      kernel: of the blur, not negative, sum 1: one kernel [s, s], or one for each image
        [*b, s, s]; s odd.
      iterations: how many steps, >= 1; static.

    Returns:
      Images of the shape and dtype of `image`, not negative. They may exceed 1.

    Raises:
      ValueError: not an image; kernels as `convolve` refuses them; no iterations.
    """
    check_image(image)
    check_kernel(kernel, np.shape(image))
    if not isinstance(iterations, (int, np.integer)) or iterations < 1:
        raise ValueError(
            f"iterations must be an integer >= 1: got {short(iterations)}; use 10 to 50."
        )
    return _richardson_lucy(image, kernel, iterations=int(iterations))


@jax.jit
def _noise_to_signal(image: Array) -> Array:
    def measure(one: Array) -> Array:
        one = one.astype(jnp.float32)
        noise = noise_variance(grayscale(one), min(NOISE_BLOCK, *one.shape[:2])) / GREY_NOISE
        signal = jnp.maximum(one.var((0, 1)).mean(), LEAST_DIVISOR)
        return LEAST_NOISE_TO_SIGNAL + noise / signal

    return map_images(measure, image)


@jax.jit
def _wiener(image: Array, kernel: Array, noise_to_signal: ArrayLike) -> Array:
    ratio = jnp.broadcast_to(noise_to_signal, image.shape[:-3])
    return map_images(_wiener_one, image, one_each(kernel, image), ratio)


def _wiener_one(image: Array, kernel: Array, ratio: Array) -> Array:
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    margin = kernel.shape[0] - 1
    size = transform_size(image.shape, margin)
    transfer = transfer_function(kernel.astype(dtype), size)
    inverse = jnp.conj(transfer) / (jnp.square(jnp.abs(transfer)) + ratio.astype(dtype))
    mean = image.astype(dtype).mean((0, 1))
    fade = jnp.asarray(_fade(image.shape, size, margin), dtype)
    extended = fade * extend(image - mean, size, margin)
    restored = mean + apply_transfer(extended, inverse, image.shape, margin)
    return restored.astype(image.dtype)


def _fade(shape: tuple[int, ...], size: tuple[int, int], margin: int) -> np.ndarray:
    """1 over the image and falling to 0 over its margins, as half a period of a cosine."""
    sides = []
    for length, total in zip(shape[:2], size, strict=True):
        before, after = ((np.arange(n) + 0.5) / n for n in (margin, total - length - margin))
        rising = np.concatenate([before, np.ones(length), after[::-1]])
        sides.append(0.5 - 0.5 * np.cos(np.pi * rising))
    return np.outer(*sides)[..., None]


@partial(jax.jit, static_argnames="iterations")
def _richardson_lucy(image: Array, kernel: Array, *, iterations: int) -> Array:
    restore = partial(_richardson_lucy_one, iterations=iterations)
    return map_images(restore, image, one_each(kernel, image))


def _richardson_lucy_one(image: Array, kernel: Array, *, iterations: int) -> Array:
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    margin = kernel.shape[0] // 2
    size = transform_size(image.shape, margin)
    transfer = transfer_function(kernel.astype(dtype), size)
    blurred = image.astype(dtype)

    def apply(x: Array, transfer: Array) -> Array:
        return apply_transfer(extend(x, size, margin), transfer, x.shape, margin)

    def step(_: ArrayLike, estimate: Array) -> Array:
        expected = jnp.maximum(apply(estimate, transfer), LEAST_DIVISOR)
        return jnp.maximum(estimate * apply(blurred / expected, jnp.conj(transfer)), 0)

    # The first step's result is the same whatever the grey level.
    flat = jnp.full_like(blurred, 0.5)
    return lax.fori_loop(0, iterations, step, flat).astype(image.dtype)
