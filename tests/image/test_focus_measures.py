"""Focus measures against OpenCV, SciPy and NumPy in float64, and what each is for."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from skimage import data

from bvit.image.focus_measures import (
    DEFAULT_MEASURE,
    FOCUS_MEASURES,
    THRESHOLDS,
    entropy,
    own_threshold,
    reblur_error,
    relative_detail,
    tenengrad,
)

PATCH = 8


def photo(size=(32, 48), seed=0):
    """Smooth random colours with some noise on them: edges, texture and flat parts."""
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.normal(size=(*size, 3)), (2, 2, 0)) * 3
    image = np.where(image > 0.2, 0.8, 0.3 + 0.3 * image) + rng.normal(size=image.shape) * 0.02
    return np.clip(image, 0, 1).astype(np.float32)


def grey(image):
    return 255 * (np.asarray(image, np.float64) @ [0.299, 0.587, 0.114])


def patch_apply(function, x, patch=PATCH):
    rows, columns = x.shape[0] // patch, x.shape[1] // patch
    return np.array(
        [
            [
                function(x[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch])
                for j in range(columns)
            ]
            for i in range(rows)
        ]
    )


def sobel_energy(image):
    gradients = [cv2.Sobel(grey(image), cv2.CV_64F, dx, 1 - dx) for dx in (0, 1)]
    return patch_apply(np.mean, gradients[0] ** 2 + gradients[1] ** 2)


def resize_error(image):
    x = grey(image)
    half = cv2.resize(x, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    back = cv2.resize(half, (x.shape[1], x.shape[0]), interpolation=cv2.INTER_LINEAR)
    return patch_apply(np.mean, (x - back) ** 2)


def histogram_entropy(image):
    def one(patch):
        counts, _ = np.histogram(patch, bins=16, range=(0, 256))
        shares = counts[counts > 0] / patch.size
        return -(shares * np.log2(shares)).sum()

    return patch_apply(one, grey(image))


def log_over_variance(image):
    x = grey(image)
    smooth = ndimage.convolve(x, np.outer([1, 2, 1], [1, 2, 1]) / 16, mode="mirror")
    fine = ndimage.convolve(smooth, np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]]), mode="mirror")
    haar = (x[::2, ::2] - x[::2, 1::2] - x[1::2, ::2] + x[1::2, 1::2]) / 2
    noise = np.quantile(patch_apply(np.mean, haar**2, PATCH // 2), 0.25)
    return patch_apply(np.var, fine) / (patch_apply(np.var, x) + 30 + 10 * noise)


ORACLES = {
    tenengrad: sobel_energy,
    reblur_error: resize_error,
    entropy: histogram_entropy,
    relative_detail: log_over_variance,
}


@pytest.mark.parametrize("measure", ORACLES, ids=lambda measure: measure.__name__)
def test_measure_equals_its_oracle(measure):
    images = np.stack([photo(seed=0), photo(seed=1)])
    expected = np.stack([ORACLES[measure](image) for image in images])
    np.testing.assert_allclose(measure(images, patch_size=PATCH), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FOCUS_MEASURES)
def test_eager_equals_jit_equals_vmap(name):
    def measure(image):
        return FOCUS_MEASURES[name](image, patch_size=PATCH)

    images = jnp.asarray(np.stack([photo(seed=i) for i in range(4)])).reshape(2, 2, 32, 48, 3)
    eager = measure(images)
    assert (eager.shape, eager.dtype) == ((2, 2, 4, 6), jnp.float32)
    np.testing.assert_allclose(jax.jit(measure)(images), eager, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(jax.vmap(measure))(images), eager, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FOCUS_MEASURES)
def test_gradients_are_finite_also_on_a_flat_image(name):
    for image in (photo(), np.full((16, 16, 3), 0.5, np.float32)):
        gradient = jax.grad(lambda x: FOCUS_MEASURES[name](x, patch_size=PATCH).sum())(
            jnp.asarray(image)
        )
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", FOCUS_MEASURES)
def test_brightness_does_not_matter_and_flat_patches_measure_zero(name):
    image = photo() * 0.5
    measure = FOCUS_MEASURES[name]
    if name != "entropy":  # whose bins stand still
        brighter = measure(image + 0.25, patch_size=PATCH)
        np.testing.assert_allclose(brighter, measure(image, patch_size=PATCH), rtol=2e-3, atol=2e-3)
    flat = np.full((16, 16, 3), 0.3, np.float32)
    np.testing.assert_allclose(measure(flat, patch_size=PATCH), 0, atol=1e-6)


def sharp_ranked_first(name, noise):
    """Probability that a sharp patch outranks a blurred one of the same, noisy, photograph."""
    image = data.astronaut()[:256, :256] / 255.0
    image[:, 128:] = ndimage.gaussian_filter(image, (2, 2, 0))[:, 128:]
    image += np.random.default_rng(0).normal(size=image.shape) * noise
    values = np.asarray(
        FOCUS_MEASURES[name](np.clip(image, 0, 1).astype(np.float32), patch_size=16)
    )
    sharp, blurred = values[:, :7].reshape(-1, 1), values[:, 9:].reshape(1, -1)
    return (sharp > blurred).mean()


def test_relative_detail_is_robust_to_noise():
    assert sharp_ranked_first("relative", 0.0) > sharp_ranked_first("laplacian", 0.0)
    assert sharp_ranked_first("relative", 0.06) > sharp_ranked_first("laplacian", 0.06) + 0.1


def test_reblur_error_of_an_odd_image():
    image = photo((21, 35))
    padded = np.pad(image, ((0, 1), (0, 1), (0, 0)), mode="edge")
    x = grey(padded)
    half = cv2.resize(x, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    back = cv2.resize(half, x.shape[::-1], interpolation=cv2.INTER_LINEAR)
    expected = patch_apply(np.mean, ((x - back) ** 2)[:21, :35], 7)
    np.testing.assert_allclose(reblur_error(image, patch_size=7), expected, rtol=1e-4)


@pytest.mark.parametrize("name", FOCUS_MEASURES)
def test_bad_input_is_refused(name):
    with pytest.raises(ValueError, match="patch_size=9"):
        FOCUS_MEASURES[name](photo(), patch_size=9)
    with pytest.raises(ValueError, match="uint8"):
        FOCUS_MEASURES[name](np.zeros((8, 8, 3), np.uint8), patch_size=8)
    with pytest.raises(ValueError, match="channel"):
        FOCUS_MEASURES[name](np.zeros((8, 8, 1), np.float32), patch_size=8)


def test_relative_detail_needs_two_pixels():
    with pytest.raises(ValueError, match="at least 2"):
        relative_detail(photo(), patch_size=1)


def test_every_measure_has_a_threshold_within_its_range():
    photo = jnp.asarray(np.random.default_rng(0).random((1, 64, 64, 3)), jnp.float32)
    image = jnp.concatenate([photo, jnp.full_like(photo, 0.5)])
    assert set(THRESHOLDS) == set(FOCUS_MEASURES) and DEFAULT_MEASURE in FOCUS_MEASURES
    for name, measure in FOCUS_MEASURES.items():
        noise, flat = np.asarray(measure(image, patch_size=16))
        assert (flat < own_threshold(name)).all()
        # Noise of full contrast is detail to all but the measure that looks for it.
        assert name == "relative" or (noise >= own_threshold(name)).all()
    with pytest.raises(ValueError, match="did you mean relative"):
        own_threshold("relativ")
    with pytest.raises(ValueError, match="no threshold of its own"):
        own_threshold(relative_detail)
