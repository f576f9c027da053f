"""The sensor's noise by its statistics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bvit.image.noise import sensor_noise

GREYS = np.array([0.0, 0.3, 0.6], np.float32)
FLAT = np.broadcast_to(GREYS[:, None, None, None], (3, 60, 60, 3))
KEY = jax.random.key(0)


def test_variance_grows_with_light():
    noisy = np.asarray(sensor_noise(KEY, FLAT, read=0.02, shot=0.05, bits=None))
    expected = np.sqrt(0.02**2 + 0.05**2 * GREYS)
    np.testing.assert_allclose(noisy.std(axis=(1, 2, 3)), expected, rtol=0.03)
    np.testing.assert_allclose(noisy.mean(axis=(1, 2, 3)), GREYS, atol=2e-3)
    assert abs(np.corrcoef(noisy[1].ravel(), noisy[2].ravel())[0, 1]) < 0.03


def test_rounds_and_clips_to_8_bits():
    noisy = np.asarray(sensor_noise(KEY, FLAT, read=0.02, shot=0.0)) * 255
    np.testing.assert_allclose(noisy, np.round(noisy), atol=1e-4)
    assert noisy.min() == 0
    exact = sensor_noise(KEY, FLAT, read=0.02, shot=0.0, bits=None)
    np.testing.assert_allclose(noisy, np.round(np.clip(exact, 0, 1) * 255), atol=1e-4)


def test_no_noise_changes_no_bit():
    result = sensor_noise(KEY, FLAT, read=0.0, shot=0.0, bits=None)
    np.testing.assert_array_equal(result, FLAT)


def test_deviations_and_keys_for_each_image_under_vmap():
    read = np.array([0.0, 0.01, 0.1], np.float32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(3))
    whole = sensor_noise(KEY, FLAT, read=read, shot=0.0)
    noise = jax.vmap(lambda k, x, r: sensor_noise(k, x, read=r, shot=0.0))
    np.testing.assert_allclose(noise(keys, FLAT, read), whole, atol=1e-6)


def test_bfloat16_and_finite_gradients():
    image = jnp.asarray(FLAT, jnp.bfloat16)
    assert sensor_noise(KEY, image).dtype == jnp.bfloat16
    noise = partial(sensor_noise, KEY, bits=None)
    gradient = jax.jit(jax.grad(lambda x, r, s: noise(x, read=r, shot=s).sum(), (0, 1, 2)))
    for part in gradient(jnp.asarray(FLAT), 0.0, 0.1):
        assert jnp.isfinite(part).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"read": -1.0}, "read must be"),
        ({"shot": -1.0}, "shot must be"),
        ({"bits": 0}, "bits must"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        sensor_noise(KEY, FLAT, **options)
