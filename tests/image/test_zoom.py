"""Zoom blur against SciPy's interpolation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import skimage.data

from bvit.image.zoom import random_zoom_blur, zoom_blur

PHOTOS = np.stack(
    [
        photo[80:112, 200:227].astype(np.float32) / 255
        for photo in (skimage.data.astronaut(), skimage.data.chelsea())
    ]
)
AMOUNTS = np.array([0.1, 0.4], np.float32)
STEPS = 5


def blur(image, amount):
    return zoom_blur(image, amount, steps=STEPS)


def scipy_zoom_blur(image, amount):
    middle = (np.array(image.shape[:2]) - 1) / 2
    total = np.zeros(image.shape)
    for factor in np.linspace(1, 1 + amount, STEPS):
        offset = middle - middle / factor
        for c in range(3):
            total[..., c] += scipy.ndimage.affine_transform(
                image[..., c].astype(np.float64), np.full(2, 1 / factor), offset, order=1
            )
    return total / STEPS


def test_is_the_mean_of_scipys_zooms():
    expected = [scipy_zoom_blur(x, float(a)) for x, a in zip(PHOTOS, AMOUNTS, strict=True)]
    np.testing.assert_allclose(blur(PHOTOS, AMOUNTS), expected, atol=1e-5)


def test_eager_jit_vmap_and_bfloat16():
    eager = blur(PHOTOS, AMOUNTS)
    for transform in (jax.jit, jax.vmap):
        np.testing.assert_allclose(transform(blur)(PHOTOS, AMOUNTS), eager, atol=1e-6)
    image = jnp.asarray(PHOTOS, jnp.bfloat16)
    assert jax.eval_shape(blur, image, AMOUNTS).dtype == jnp.bfloat16


def test_zero_changes_no_bit_and_constants_stay():
    result = blur(PHOTOS, np.array([0.0, 0.4], np.float32))
    np.testing.assert_array_equal(result[0], PHOTOS[0])
    grey = np.full_like(PHOTOS, 0.37)
    np.testing.assert_allclose(blur(grey, AMOUNTS), grey, atol=1e-6)


def test_gradients_are_finite():
    gradient = jax.jit(jax.grad(lambda x, a: (blur(x, a) ** 2).sum(), (0, 1)))
    for part in gradient(jnp.asarray(PHOTOS), jnp.array([0.0, 0.3])):
        assert jnp.isfinite(part).all()


def test_random_form_draws_for_each_image():
    key = jax.random.key(0)
    result = random_zoom_blur(key, PHOTOS[[0, 0]], amount_range=(0.1, 0.5), steps=STEPS)
    assert np.abs(result[0] - result[1]).max() > 1e-3
    same = random_zoom_blur(key, PHOTOS, amount_range=(0.1, 0.1), steps=STEPS)
    np.testing.assert_allclose(same, blur(PHOTOS, 0.1), atol=1e-6)
    unchanged = random_zoom_blur(key, PHOTOS, steps=STEPS, probability=0.0)
    np.testing.assert_array_equal(unchanged, PHOTOS)


def test_refuses_bad_options():
    with pytest.raises(ValueError, match="amount must be >= 0"):
        blur(PHOTOS, -0.1)
    with pytest.raises(ValueError, match="steps must be an integer >= 2"):
        zoom_blur(PHOTOS, 0.1, steps=1)
    with pytest.raises(ValueError, match="amount_range must be within"):
        random_zoom_blur(jax.random.key(0), PHOTOS, amount_range=(-0.1, 0.1))
