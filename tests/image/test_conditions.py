import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bvit.image.blur import gaussian_blur
from bvit.image.conditions import apply_condition, indexed_keys, parts

COUNT = 60


@pytest.fixture(scope="module")
def pictures():
    image = jax.random.uniform(jax.random.key(0), (COUNT, 24, 24, 3))
    return indexed_keys(jax.random.key(1), jnp.arange(COUNT)), image


def changed(image, other):
    return np.abs(np.asarray(image) - np.asarray(other)).reshape(len(image), -1).max(1) > 1e-6


def test_sharp_changes_nothing(pictures):
    keys, image = pictures
    np.testing.assert_array_equal(apply_condition("sharp", keys, image), image)


@pytest.mark.parametrize("name", ["blur", "region", "gaussian:2.5"])
def test_blurs_change_every_picture(pictures, name):
    keys, image = pictures
    assert changed(apply_condition(name, keys, image), image).all()


def test_gaussian_has_the_given_sigma(pictures):
    keys, image = pictures
    blurred = apply_condition("gaussian:1.5", keys, image)
    np.testing.assert_array_equal(blurred, gaussian_blur(image, 1.5))
    np.testing.assert_array_equal(apply_condition("gaussian:0", keys, image), image)


def test_mix_blurs_about_half_and_is_another_name_for_sharp_and_blur(pictures):
    keys, image = pictures
    mixed = apply_condition("mix", keys, image)
    assert 0.3 < changed(mixed, image).mean() < 0.7
    np.testing.assert_array_equal(mixed, apply_condition("sharp+blur", keys, image))


def test_what_happens_to_an_image_depends_on_its_key_alone(pictures):
    keys, image = pictures
    whole = apply_condition("sharp+blur+region", keys, image)
    part = apply_condition("sharp+blur+region", keys[40:47], image[40:47])
    np.testing.assert_allclose(part, whole[40:47], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bluur", "did you mean 'blur'"),
        ("sharp+regoin", "did you mean 'region'"),
        ("gaussian:wide", "gaussian:2.5"),
        ("gaussian:-1", "0 or more"),
        ("", "must be one of"),
    ],
)
def test_unknown_conditions_are_told(name, message):
    with pytest.raises(ValueError, match=message):
        parts(name)
