"""Random colours: within the range, by each image's key alone, and as colorsys has them."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bvit.image.color import MAX_STRENGTHS, random_color_jitter

IMAGES = np.random.default_rng(0).random((40, 5, 6, 3), np.float32)
KEY = jax.random.key(0)
ALL = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


def hsv(images):
    pixels = np.asarray(images, np.float64).reshape(-1, 3)
    converted = [colorsys.rgb_to_hsv(*pixel) for pixel in pixels]
    return np.array(converted).reshape(len(images), -1, 3)


def test_brightness_is_one_uniform_number_added_to_each_image():
    images = 0.4 + 0.2 * IMAGES
    added = np.asarray(random_color_jitter(KEY, images, brightness=0.3)) - images
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1, :1], added.shape), atol=1e-6)
    drawn = added[:, 0, 0, 0]
    assert drawn.min() < -0.2 and drawn.max() > 0.2 and np.abs(drawn).max() <= 0.3


def test_contrast_scales_the_distance_to_the_mean():
    images = 0.4 + 0.2 * IMAGES
    result = np.asarray(random_color_jitter(KEY, images, contrast=0.5))
    centred, were = (x - x.mean((1, 2), keepdims=True) for x in (result, images))
    factors = (centred * were).sum((1, 2, 3)) / (were**2).sum((1, 2, 3))
    np.testing.assert_allclose(centred, factors[:, None, None, None] * were, atol=1e-6)
    assert 0.5 <= factors.min() < 0.7 and 1.3 < factors.max() <= 1.5


def test_saturation_and_hue_are_those_of_colorsys():
    images = 0.3 + 0.2 * IMAGES  # whose saturation is at most 0.4
    before = hsv(images)
    pale = hsv(random_color_jitter(KEY, images, saturation=0.5))
    factors = pale[..., 1] / before[..., 1]
    np.testing.assert_allclose(factors, factors[:, :1].repeat(30, 1), atol=1e-3)
    np.testing.assert_allclose(pale[..., 2], before[..., 2], atol=1e-5)
    turned = hsv(random_color_jitter(KEY, images, hue=0.25))
    turns = (turned[..., 0] - before[..., 0] + 0.5) % 1 - 0.5
    np.testing.assert_allclose(turns, turns[:, :1].repeat(30, 1), atol=1e-3)
    assert -0.25 <= turns.min() < -0.15 and 0.15 < turns.max() <= 0.25
    np.testing.assert_allclose(turned[..., 1:], before[..., 1:], atol=1e-4)


def test_pixels_stay_in_their_range_and_images_differ():
    result = np.asarray(random_color_jitter(KEY, IMAGES[:1].repeat(40, 0), **MAX_STRENGTHS))
    assert result.min() == 0 and result.max() == 1 and np.isfinite(result).all()
    assert len(np.unique(result.mean((1, 2, 3)))) == 40


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_strength_changes_no_bit(dtype):
    images = jnp.asarray(IMAGES, dtype)
    np.testing.assert_array_equal(random_color_jitter(KEY, images), images)
    assert random_color_jitter(KEY, images, **ALL).dtype == dtype


def test_an_image_depends_on_its_key_alone():
    keys = jax.random.split(KEY, 40)
    expected = random_color_jitter(keys, IMAGES, **ALL)
    for part in (slice(7, 8), slice(3, 30)):
        result = random_color_jitter(keys[part], IMAGES[part], **ALL)
        np.testing.assert_allclose(result, expected[part], atol=1e-6)
    mapped = jax.jit(jax.vmap(lambda k, x: random_color_jitter(k, x, **ALL)))(keys, IMAGES)
    np.testing.assert_allclose(mapped, expected, atol=1e-6)


def test_a_probability_leaves_some_images_exactly_and_changes_the_others_as_before():
    always = random_color_jitter(KEY, IMAGES, **ALL)
    some = random_color_jitter(KEY, IMAGES, **ALL, probability=0.5)
    changed = (np.asarray(some) != IMAGES).any((1, 2, 3))
    assert 0 < changed.sum() < len(IMAGES)
    np.testing.assert_allclose(some[changed], always[changed], atol=1e-6)


def test_which_images_are_changed_says_nothing_of_the_change():
    grey = np.full((400, 1, 1, 3), 0.5, np.float32)
    added = random_color_jitter(KEY, grey, brightness=0.5, probability=0.5)[:, 0, 0, 0] - 0.5
    assert abs((added > 0).sum() - (added < 0).sum()) < 60  # four standard deviations


def test_gradients_are_finite_also_for_grey_and_black():
    images = jnp.concatenate([IMAGES[:1], jnp.full((1, 5, 6, 3), 0.5), jnp.zeros((1, 5, 6, 3))])
    gradient = jax.grad(lambda x: random_color_jitter(KEY, x, **ALL).sum())(images)
    assert np.isfinite(gradient).all() and gradient.any()


@pytest.mark.parametrize(
    ("image", "options", "text"),
    [
        (IMAGES[..., :1], {}, "must have 3 channels"),
        ((IMAGES * 255).astype(np.uint8), {}, "to_float"),
        (IMAGES, {"hue": 0.6}, "hue must be within 0 .off. and 0.5: got 0.6"),
        (IMAGES, {"contrast": -0.1}, "contrast must be within 0 .off. and 1: got -0.1"),
    ],
)
def test_refuses(image, options, text):
    with pytest.raises(ValueError, match=text):
        random_color_jitter(KEY, image, **options)
