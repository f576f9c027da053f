from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from bvit.image.blur import drawn_sigma, gaussian_blur, random_gaussian_blur
from bvit.image.conditions import (
    CONDITIONS,
    IMAGENET_C,
    apply_condition,
    drawn_by,
    expand,
    indexed_keys,
    parts,
)
from bvit.image.corruptions import corrupt
from bvit.image.deblur import deblur_gaussian
from bvit.image.draws import split_each

COUNT = 60


@pytest.fixture(scope="module")
def images():
    image = jax.random.uniform(jax.random.key(0), (COUNT, 24, 24, 3))
    return indexed_keys(jax.random.key(1), jnp.arange(COUNT)), image


def changed(image, other):
    return np.abs(np.asarray(image) - np.asarray(other)).reshape(len(image), -1).max(1) > 1e-6


def test_sharp_changes_nothing(images):
    keys, image = images
    np.testing.assert_array_equal(apply_condition("sharp", keys, image), image)


@pytest.mark.parametrize(
    "name", [*(n for n in CONDITIONS if n != "sharp"), "gaussian:2.5", "noisy:region:box"]
)
def test_blurs_change_every_image(images, name):
    keys, image = images
    assert changed(apply_condition(name, keys, image), image).all()


def test_gaussian_has_the_given_sigma(images):
    keys, image = images
    blurred = apply_condition("gaussian:1.5", keys, image)
    np.testing.assert_array_equal(blurred, gaussian_blur(image, 1.5))
    np.testing.assert_array_equal(apply_condition("gaussian:0", keys, image), image)


@pytest.mark.parametrize("name", ["depth", "zoom", "noisy:region:shake"])
def test_devices_can_each_do_a_part(images, name):
    count = 2 * jax.device_count()
    keys, image = (x[:count] for x in images)
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    split = PartitionSpec("data")
    apply = partial(apply_condition, name)
    parted = jax.jit(jax.shard_map(apply, mesh=mesh, in_specs=split, out_specs=split))
    # Rounding to 8 bits may go the other way.
    np.testing.assert_allclose(parted(keys, image), apply(keys, image), atol=1.01 / 255)


def test_imagenet_c_is_named_by_blur_and_severity(images):
    keys, image = images
    blurred = apply_condition("imagenet_c:zoom_blur:2", keys, image)
    np.testing.assert_array_equal(blurred, corrupt(keys, image, name="zoom_blur", severity=2))
    assert len(set(IMAGENET_C)) == 20
    assert all(len(parts(name)) == 1 for name in IMAGENET_C)


def test_imagenet_c_alone_stands_for_all_of_them():
    assert expand(["sharp", "imagenet_c"]) == ("sharp", *IMAGENET_C)


@pytest.mark.parametrize("inner", ["blur", "gaussian:1.5", "stored:gaussian:1.5", "noisy:blur"])
def test_deblurring_is_of_the_stored_image_by_the_sigma_it_was_blurred_by(images, inner):
    keys, image = (x[:5] for x in images)
    stored = apply_condition(f"stored:{inner}", keys, image)
    np.testing.assert_allclose(stored * 255, np.round(np.asarray(stored) * 255), atol=1e-4)
    own_keys = split_each(keys)[1] if inner.startswith("noisy") else keys
    sigma = drawn_sigma(own_keys) if inner.endswith("blur") else jnp.full(5, 1.5)
    expected = deblur_gaussian(stored, sigma)
    np.testing.assert_allclose(apply_condition(f"wiener:{inner}", keys, image), expected, atol=1e-6)


def test_the_known_sigma_is_the_one_that_is_drawn(images):
    keys, image = images
    sigma = drawn_sigma(keys, sigma_range=(0.5, 3.0), probability=0.5)
    assert 15 < (sigma > 0).sum() < 45
    blurred = random_gaussian_blur(keys, image, sigma_range=(0.5, 3.0), probability=0.5)
    np.testing.assert_allclose(gaussian_blur(image, sigma), blurred, atol=1e-6)


def test_blind_deblurring_follows_any_blur(images):
    keys, image = (x[:5] for x in images)
    expected = deblur_gaussian(apply_condition("stored:box", keys, image), method="wiener")
    np.testing.assert_allclose(
        apply_condition("wiener_blind:box", keys, image), expected, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("blur", "blur"),
        ("stored:blur", "blur"),
        ("wiener_blind:stored:gaussian:2", "gaussian:2"),
        ("richardson_lucy:noisy:blur", "noisy:blur"),
        ("sharp+blur", "sharp+blur"),
    ],
)
def test_a_deblurred_image_draws_what_the_blurred_one_does(name, drawn):
    assert drawn_by(name) == drawn


def test_region_leaves_the_rest_as_it_is(images):
    keys, image = images
    same = np.asarray(apply_condition("region:box", keys, image) == image).all(-1).mean((1, 2))
    assert 0.25 < same.min() < same.max() < 0.75


def test_noisy_is_rounded_to_8_bits_and_differs_between_images(images):
    keys, image = images
    grey = jnp.full_like(image, 0.5)
    noise = np.asarray(apply_condition("noisy:sharp", keys, grey)) * 255
    np.testing.assert_allclose(noise, np.round(noise), atol=1e-4)
    assert 2 < noise.std() < 6
    assert changed(noise[1:], noise[:-1]).all()


def test_mix_blurs_about_half_and_is_another_name_for_sharp_and_blur(images):
    keys, image = images
    mixed = apply_condition("mix", keys, image)
    assert 0.3 < changed(mixed, image).mean() < 0.7
    np.testing.assert_array_equal(mixed, apply_condition("sharp+blur", keys, image))


def test_what_happens_to_an_image_depends_on_its_key_alone(images):
    keys, image = images
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
        ("noisy:moton", "did you mean 'motion'"),
        ("weiner:blur", "did you mean 'wiener:NAME'"),
        ("wiener:motion", "'motion' has none: .* or wiener_blind:motion"),
        ("wiener:noisy:region", "'region' has none"),
        ("richardson_lucy:gaussian:-1", "0 or more"),
        ("imagenet_c:fog:1", "imagenet_c:defocus_blur:3; name must be one of"),
        ("imagenet_c:zoom_blur:6", "severity must be 1, 2, 3, 4 or 5"),
        ("imagenet_c:zoom_blur", "severity must be 1, 2, 3, 4 or 5"),
    ],
)
def test_unknown_conditions_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        parts(name)
