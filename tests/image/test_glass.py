"""Glass blur against the published loop over pixels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from bvit.image.blur import gaussian_blur
from bvit.image.glass import glass_blur, move_pixels, pixel_sources, random_glass_blur

PHOTOS = np.stack(
    [
        photo[80:112, 200:227].astype(np.float32) / 255
        for photo in (skimage.data.astronaut(), skimage.data.chelsea())
    ]
)
SIGMAS = np.array([0.7, 1.5], np.float32)
blur = partial(glass_blur, kernel_size=5)
sources_of = jax.jit(pixel_sources, static_argnums=1)


def moved(values, shift, max_shift):
    """As ImageNet-C's loop: its swap reads a view of the pixel that it has just overwritten."""
    height, width = values.shape[:2]
    values = values.copy()
    for h in range(height - max_shift, max_shift, -1):
        for w in range(width - max_shift, max_shift, -1):
            down, right = shift[h, w]
            values[h, w] = values[h + down, w + right]
    return values


@pytest.mark.parametrize("max_shift", [1, 4])
def test_sources_are_those_of_the_loop(max_shift):
    shape = PHOTOS[0].shape[:2]
    rng = np.random.default_rng(max_shift)
    shift = rng.integers(-max_shift, max_shift, (*shape, 2))
    places = np.arange(shape[0] * shape[1]).reshape(shape)
    sources = sources_of(shift, max_shift)
    np.testing.assert_array_equal(sources.reshape(shape), moved(places, shift, max_shift))


def test_follows_the_longest_chain():
    shape = PHOTOS[0].shape[:2]
    shift = np.broadcast_to([0, 1], (*shape, 2)).copy()  # all read the pixel to their right
    places = np.arange(shape[0] * shape[1]).reshape(shape)
    sources = sources_of(shift, 4)
    np.testing.assert_array_equal(sources.reshape(shape), moved(places, shift, 4))


def test_rounds_follow_each_other():
    key = jax.random.key(0)
    shifts = np.asarray(jax.random.randint(key, (3, *PHOTOS[0].shape[:2], 2), -2, 2))
    expected = PHOTOS[0]
    for shift in shifts:
        expected = moved(expected, shift, 2)
    result = jax.jit(partial(move_pixels, max_shift=2, rounds=3))(key, PHOTOS[0])
    np.testing.assert_array_equal(result, expected)


def test_blurs_before_and_after():
    key = jax.random.key(1)
    first = gaussian_blur(PHOTOS[0], 0.7, kernel_size=5)
    between = jax.jit(partial(move_pixels, max_shift=2, rounds=2))(key, first)
    expected = gaussian_blur(between, 0.7, kernel_size=5)
    np.testing.assert_allclose(blur(key, PHOTOS[0], 0.7), expected, atol=1e-6)


def test_an_images_draw_depends_on_its_key_alone():
    key = jax.random.key(2)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(2))
    whole = blur(key, PHOTOS, SIGMAS)
    np.testing.assert_allclose(blur(keys[1:], PHOTOS[1:], SIGMAS[1:]), whole[1:], atol=1e-6)
    np.testing.assert_allclose(jax.vmap(blur)(keys, PHOTOS, SIGMAS), whole, atol=1e-6)


def test_identity_constants_and_gradients():
    key = jax.random.key(3)
    result = blur(key, PHOTOS, np.array([0.0, 1.0], np.float32))
    np.testing.assert_array_equal(result[0], PHOTOS[0])
    grey = np.full_like(PHOTOS, 0.37)
    np.testing.assert_allclose(blur(key, grey, SIGMAS), grey, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda x, s: (blur(key, x, s) ** 2).sum(), (0, 1)))
    for part in gradient(jnp.asarray(PHOTOS), jnp.array([0.0, 1.0])):
        assert jnp.isfinite(part).all()


def test_random_form():
    key, image = jax.random.key(4), jnp.asarray(PHOTOS[[0, 0]], jnp.bfloat16)
    result = random_glass_blur(key, image, kernel_size=5)
    assert result.dtype == jnp.bfloat16
    assert (result[0] != result[1]).any()
    unchanged = random_glass_blur(key, image, kernel_size=5, probability=0.0)
    np.testing.assert_array_equal(unchanged, image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": -1.0}, "sigma must be >= 0"),
        ({"max_shift": 0}, "max_shift must be an integer >= 1"),
        ({"rounds": 0}, "rounds must be an integer >= 1"),
        ({"kernel_size": 4}, "odd integer"),
    ],
)
def test_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        glass_blur(jax.random.key(0), PHOTOS, **{"sigma": 1.0, **options})
