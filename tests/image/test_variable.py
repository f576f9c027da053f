"""The blur of a map of sigmas, against the uniform blur pixel by pixel."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import skimage.data

from bvit.image.variable import random_variable_gaussian_blur, variable_gaussian_blur

PHOTOS = np.stack(
    [
        photo[80:100, 200:218].astype(np.float32) / 255
        for photo in (skimage.data.astronaut(), skimage.data.chelsea())
    ]
)
MAPS = np.random.default_rng(0).uniform(0.3, 4, PHOTOS.shape[:-1]).astype(np.float32)
MAPS[:, :4, :4] = 0
SIZE = 9
blur = partial(variable_gaussian_blur, kernel_size=SIZE)
random_blur = partial(random_variable_gaussian_blur, kernel_size=SIZE)


def looped(image, sigma_map):
    result = image.astype(np.float64)
    mirrored = np.pad(result, [(SIZE // 2,) * 2] * 2 + [(0, 0)], mode="reflect")
    for i, j in np.argwhere(sigma_map > 0):
        taps = np.exp(-0.5 * ((np.arange(SIZE) - SIZE // 2) / float(sigma_map[i, j])) ** 2)
        weights = np.outer(taps, taps) / taps.sum() ** 2
        result[i, j] = np.tensordot(weights, mirrored[i : i + SIZE, j : j + SIZE], 2)
    return result


def test_each_pixel_has_its_own_gaussian():
    expected = [looped(x, s) for x, s in zip(PHOTOS, MAPS, strict=True)]
    np.testing.assert_allclose(blur(PHOTOS, MAPS), expected, atol=1e-6)


def test_a_flat_map_is_scipys_gaussian():
    expected = scipy.ndimage.gaussian_filter(
        PHOTOS[0].astype(np.float64), (1.3, 1.3, 0), mode="mirror", radius=(4, 4, 0)
    )
    np.testing.assert_allclose(blur(PHOTOS, np.full((20, 18), 1.3))[0], expected, atol=1e-6)


def test_eager_jit_and_vmap_agree_and_constants_stay():
    eager = blur(PHOTOS, MAPS)
    for transform in (jax.jit, jax.vmap):
        np.testing.assert_allclose(transform(blur)(PHOTOS, MAPS), eager, atol=1e-6)
    np.testing.assert_array_equal(eager[:, :4, :4], PHOTOS[:, :4, :4])
    grey = np.full_like(PHOTOS, 0.37)
    np.testing.assert_allclose(blur(grey, MAPS), grey, atol=1e-6)


def test_bfloat16_and_finite_gradients():
    assert jax.eval_shape(blur, jnp.asarray(PHOTOS, jnp.bfloat16), MAPS).dtype == jnp.bfloat16
    gradient = jax.jit(jax.grad(lambda x, s: (blur(x, s) ** 2).sum(), (0, 1)))
    for part in gradient(PHOTOS, MAPS):
        assert jnp.isfinite(part).all()


def test_random_maps_fill_the_range_and_are_the_truth():
    key = jax.random.key(0)
    result, maps = random_blur(key, PHOTOS, sigma_range=(0.5, 3.0), return_map=True)
    np.testing.assert_allclose(maps.min(axis=(1, 2)), 0.5, rtol=1e-5)
    np.testing.assert_allclose(maps.max(axis=(1, 2)), 3.0, rtol=1e-5)
    assert np.abs(maps[0] - maps[1]).max() > 0.5
    assert np.abs(np.diff(maps, axis=1)).max() < 1.5  # smooth
    np.testing.assert_allclose(result, blur(PHOTOS, maps), atol=1e-6)
    unchanged = random_blur(key, PHOTOS, probability=0.0)
    np.testing.assert_array_equal(unchanged, PHOTOS)


@pytest.mark.parametrize(
    ("sigma_map", "message"),
    [
        (np.ones((20, 17)), "sigma_map must be"),
        (np.ones((3, 20, 18)), "that for each image"),
        (np.full((20, 18), -1.0), ">= 0"),
    ],
)
def test_refuses_maps(sigma_map, message):
    with pytest.raises(ValueError, match=message):
        blur(PHOTOS, sigma_map)
