"""Deblurring against scikit-image away from the borders, and as a rise in likeness."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from skimage import restoration

from bvit.image.deblur import (
    LEAST_NOISE_TO_SIGNAL,
    deblur_gaussian,
    measured_noise_to_signal,
    richardson_lucy,
    wiener,
)
from bvit.image.fourier import convolve
from bvit.image.kernels import gaussian_kernel, motion_kernel

PHOTOS = np.stack(
    [
        photo[80:144, 200:260].astype(np.float32) / 255
        for photo in (skimage.data.astronaut(), skimage.data.chelsea())
    ]
)
KERNELS = np.stack(
    [gaussian_kernel(1.2, kernel_size=7), motion_kernel(5.0, 30.0, 60.0, kernel_size=7)]
)
BLURRED = np.asarray(convolve(PHOTOS, KERNELS))
METHODS = {"wiener": wiener, "richardson_lucy": partial(richardson_lucy, iterations=4)}


def error(image, other):
    """Mean squared, away from the border, beyond which nobody knows the image."""
    inside = np.s_[:, 12:-12, 12:-12]
    return np.square(np.asarray(image, np.float64)[inside] - other[inside]).mean(axis=(1, 2, 3))


def test_wiener_is_scikit_images_in_the_interior():
    # Beyond the reach of the inverse filter, its periodic border doesn't matter.
    image = np.zeros_like(BLURRED)
    image[:, 25:-25, 25:-25] = BLURRED[:, 25:-25, 25:-25]
    result = wiener(image, KERNELS, noise_to_signal=0.1)
    mean = image.mean(axis=(1, 2), keepdims=True)
    for i, kernel in enumerate(KERNELS):
        for c in range(3):
            plain = (image - mean)[i, ..., c].astype(np.float64)
            delta = np.ones((1, 1))
            expected = restoration.wiener(
                plain, kernel.astype(np.float64), 0.1, reg=delta, clip=False
            )
            expected += mean[i, ..., c]
            inside = np.s_[20:-20, 20:-20]
            np.testing.assert_allclose(result[i][inside][..., c], expected[inside], atol=2e-4)


def test_richardson_lucy_is_scikit_images_in_the_interior():
    iterations = 4
    result = richardson_lucy(BLURRED, KERNELS, iterations=iterations)
    reach = 2 * iterations * 3  # of the border, which scikit-image fills with zeros
    inside = np.s_[reach:-reach, reach:-reach]
    for i, kernel in enumerate(KERNELS):
        for c in range(3):
            expected = restoration.richardson_lucy(
                BLURRED[i, ..., c].astype(np.float64), kernel, iterations, clip=False
            )
            np.testing.assert_allclose(result[i][inside][..., c], expected[inside], atol=1e-4)


def test_much_of_the_error_goes_with_the_true_kernel():
    before = error(BLURRED, PHOTOS)
    sharp = wiener(BLURRED, KERNELS, noise_to_signal=1e-3)
    assert (error(sharp, PHOTOS) < before / 2).all()
    assert (error(richardson_lucy(BLURRED, KERNELS), PHOTOS) < 0.7 * before).all()


def test_less_noise_is_sharper():
    errors = [
        error(wiener(BLURRED, KERNELS, noise_to_signal=ratio), PHOTOS) for ratio in (1e-1, 1e-3)
    ]
    assert (errors[1] < errors[0]).all()
    each = wiener(BLURRED, KERNELS, noise_to_signal=np.array([1e-1, 1e-3]))
    np.testing.assert_allclose(error(each, PHOTOS), [errors[0][0], errors[1][1]], rtol=1e-4)


def test_the_noise_is_measured_as_it_was_added():
    rng = np.random.default_rng(0)
    smooth = np.asarray(convolve(PHOTOS, gaussian_kernel(2.0, kernel_size=13)))
    quiet = np.asarray(measured_noise_to_signal(smooth))
    assert (quiet < 1.2 * LEAST_NOISE_TO_SIGNAL).all()
    noisy = smooth + rng.normal(size=smooth.shape).astype(np.float32) * 0.03
    ratio = 0.03**2 / noisy.var((1, 2)).mean(-1)
    np.testing.assert_allclose(measured_noise_to_signal(noisy), quiet + ratio, rtol=0.4)


@pytest.mark.parametrize("method", ["wiener", "richardson_lucy"])
def test_a_gaussian_is_undone_with_its_sigma_and_without(method):
    sigma = np.array([1.5, 1.2])
    blurred = np.asarray(convolve(PHOTOS, gaussian_kernel(sigma)))
    before = error(blurred, PHOTOS)
    known = error(deblur_gaussian(blurred, sigma, method=method), PHOTOS)
    blind = error(deblur_gaussian(blurred, method=method), PHOTOS)
    assert (known < 0.75 * before).all()
    assert blind[0] < 0.75 * before[0]  # the other's soft fur is taken for a wider blur


def test_deblur_gaussian_refuses_other_methods_and_sigmas():
    with pytest.raises(ValueError, match="method must be one of wiener, richardson_lucy"):
        deblur_gaussian(BLURRED, 1.0, method="weiner")
    with pytest.raises(ValueError, match="sigma"):
        deblur_gaussian(BLURRED, np.ones(3))


@pytest.mark.parametrize("name", METHODS)
class TestBoth:
    def test_eager_jit_vmap_and_one_kernel_for_all_agree(self, name):
        eager = METHODS[name](BLURRED, KERNELS)
        for transform in (jax.jit, jax.vmap):
            result = transform(METHODS[name])(BLURRED, KERNELS)
            np.testing.assert_allclose(result, eager, atol=1e-5)
        shared = METHODS[name](BLURRED, KERNELS[0])
        np.testing.assert_allclose(shared[0], eager[0], atol=1e-5)

    def test_constant_images_stay_and_a_point_as_kernel_does_nothing(self, name):
        grey = np.full_like(BLURRED, 0.37)
        np.testing.assert_allclose(METHODS[name](grey, KERNELS), grey, atol=1e-5)
        point = np.pad(np.ones((1, 1), np.float32), 3)
        options = {"noise_to_signal": 1e-6} if name == "wiener" else {}
        np.testing.assert_allclose(METHODS[name](BLURRED, point, **options), BLURRED, atol=1e-5)

    def test_keeps_bfloat16_and_has_finite_gradients(self, name):
        image = jnp.asarray(BLURRED, jnp.bfloat16)
        assert jax.eval_shape(METHODS[name], image, KERNELS).dtype == jnp.bfloat16
        gradient = jax.jit(jax.grad(lambda x, k: METHODS[name](x, k).sum(), (0, 1)))
        for image in (BLURRED, np.zeros_like(BLURRED)):
            for part in gradient(image, KERNELS):
                assert jnp.isfinite(part).all()

    def test_refuses_bad_kernels(self, name):
        with pytest.raises(ValueError, match="one for each image"):
            METHODS[name](BLURRED, np.ones((3, 7, 7)))


def test_richardson_lucy_stays_finite_and_positive_on_black_and_on_noise():
    image = np.random.default_rng(0).normal(size=BLURRED.shape).astype(np.float32) * 0.1
    image[:, :30] = 0
    result = METHODS["richardson_lucy"](image, KERNELS)
    assert jnp.isfinite(result).all()
    assert result.min() >= 0


@pytest.mark.parametrize("ratio", [0.0, -1.0, np.nan])
def test_wiener_refuses_a_ratio_that_is_not_positive(ratio):
    with pytest.raises(ValueError, match="noise_to_signal must be > 0"):
        wiener(BLURRED, KERNELS, noise_to_signal=ratio)


@pytest.mark.parametrize("iterations", [0, 1.5, -3])
def test_richardson_lucy_refuses_no_iterations(iterations):
    with pytest.raises(ValueError, match="iterations must be an integer >= 1"):
        richardson_lucy(BLURRED, KERNELS, iterations=iterations)
