"""The estimate of sigma: its formula in float64, and how near it comes on photographs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import skimage.data

from bvit.image.blur import gaussian_blur
from bvit.image.deblur import wiener
from bvit.image.kernels import gaussian_kernel
from bvit.image.sigma import estimate_sigma

PHOTOS = np.stack(
    [
        photo[60:188, 150:278].astype(np.float32) / 255
        for photo in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())
    ]
)
SMALL = PHOTOS[:, 40:72, 40:72]
TRUE = np.array([1.0, 2.0, 3.0], np.float32)


def reference(image, patch_size):
    """Of one image, one step after the other."""
    grey = image.astype(np.float64) @ [0.299, 0.587, 0.114]
    haar = (grey[::2, ::2] - grey[1::2, ::2] - grey[::2, 1::2] + grey[1::2, 1::2]) / 2
    rows, columns = (side // 8 for side in haar.shape)
    blocks = (haar**2).reshape(rows, 8, columns, 8).mean((1, 3))
    noise = np.quantile(blocks, 0.25)
    energies = []
    for reblur in (0.7, 1.4):
        point = np.zeros((31, 31))
        point[15, 15] = 1
        options = {"sigma": reblur, "mode": "mirror", "radius": 6}
        kernel = scipy.ndimage.gaussian_filter(point, **options)
        gain = sum((np.diff(kernel, axis=axis) ** 2).sum() for axis in (0, 1))
        blurred = scipy.ndimage.gaussian_filter(grey, **options)
        energy = sum(
            np.pad(np.diff(blurred, axis=i), [(0, 1 - i), (0, i)], mode="edge") ** 2 for i in (0, 1)
        )
        whole = energy.mean() - gain * noise
        rows, columns = (side // patch_size for side in grey.shape)
        patches = energy.reshape(rows, patch_size, columns, patch_size).mean((1, 3))
        energies.append(np.maximum(patches - gain * noise, 0) + 0.02 * whole)
    ratio = np.maximum(energies[0] / energies[1], 1) ** (1 / 0.8)
    squared = (1.4**2 - 0.7**2) / np.maximum(ratio - 1, 1e-6) - 0.7**2 - 0.5**2
    return np.minimum(np.sqrt(np.maximum(squared, 0)), 10)


def test_is_its_formula_in_float64():
    image = gaussian_blur(PHOTOS, TRUE)
    result = estimate_sigma(image, patch_size=16)
    assert (result.shape, result.dtype) == ((3, 8, 8), jnp.float32)
    for i in range(3):
        np.testing.assert_allclose(result[i], reference(np.asarray(image[i]), 16), rtol=2e-2)


def test_is_near_the_truth_on_photographs():
    sharp = np.asarray(estimate_sigma(PHOTOS))
    assert sharp.max() < 0.8
    for sigma in TRUE:
        estimates = np.asarray(estimate_sigma(gaussian_blur(PHOTOS, sigma)))
        # These crops are a little soft themselves, which counts most where sigma is small.
        assert (np.abs(estimates - sigma) < 0.2 * sigma + 0.3).all()


def test_a_little_noise_does_not_matter():
    noise = np.random.default_rng(0).normal(size=PHOTOS.shape).astype(np.float32) * 4 / 255
    blurred = gaussian_blur(PHOTOS, TRUE)
    clean = np.asarray(estimate_sigma(blurred))
    np.testing.assert_allclose(estimate_sigma(blurred + noise), clean, rtol=0.2)


def test_shows_where_the_blur_is():
    image = np.asarray(PHOTOS).copy()
    image[:, :, 64:] = gaussian_blur(PHOTOS, 3.0)[:, :, 64:]
    sigma = np.asarray(estimate_sigma(image, patch_size=16))
    assert np.median(sigma[:, :, :3]) < 1 < 2 < np.median(sigma[:, :, 5:])


def test_contrast_does_not_matter_and_flat_images_end_the_scale():
    np.testing.assert_allclose(
        estimate_sigma(0.4 * PHOTOS + 0.3), estimate_sigma(PHOTOS), rtol=1e-3, atol=1e-3
    )
    flat = np.full_like(SMALL, 0.3)
    np.testing.assert_array_equal(estimate_sigma(flat), 10)
    half = SMALL.copy()
    half[:, :, 16:] = 0.3
    patches = np.asarray(estimate_sigma(half, patch_size=8))
    np.testing.assert_allclose(patches[:, 0, 3], estimate_sigma(half), rtol=1e-3)


def test_deblurs_blindly():
    blurred = gaussian_blur(PHOTOS, 2.0)
    kernel = gaussian_kernel(estimate_sigma(blurred), kernel_size=19)
    restored = wiener(blurred, kernel, noise_to_signal=1e-2)
    before, after = (np.square(x - PHOTOS).mean(axis=(1, 2, 3)) for x in (blurred, restored))
    assert (after < 0.85 * before).all()


@pytest.mark.parametrize("patch_size", [None, 8])
def test_eager_jit_vmap_and_finite_gradients(patch_size):
    def estimate(image):
        return estimate_sigma(image, patch_size=patch_size)

    eager = estimate(SMALL)
    for transform in (jax.jit, jax.vmap):
        np.testing.assert_allclose(transform(estimate)(SMALL), eager, rtol=1e-3, atol=1e-3)
    gradient = jax.jit(jax.grad(lambda x: estimate(x).sum()))
    for image in (SMALL, np.full_like(SMALL, 0.3), np.zeros_like(SMALL)):
        assert jnp.isfinite(gradient(image)).all()


def test_bfloat16_gives_float32():
    image = jnp.asarray(SMALL, jnp.bfloat16)
    assert jax.eval_shape(estimate_sigma, image).dtype == jnp.float32


def test_refuses():
    with pytest.raises(ValueError, match="patch_size=9"):
        estimate_sigma(SMALL, patch_size=9)
    with pytest.raises(ValueError, match="at least 7 pixels"):
        estimate_sigma(SMALL[:, :6])
    with pytest.raises(ValueError, match="channels"):
        estimate_sigma(SMALL[..., :1])
