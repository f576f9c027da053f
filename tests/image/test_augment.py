"""RandAugment: each operation by an independent tool, and by each image's key alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

from bvit.image.augment import BITS, FACTOR, OPERATIONS, SHEAR, SHIFT, TURN, random_augment
from bvit.sharding import make_mesh, per_image

IMAGES = np.random.default_rng(0).random((16, 12, 16, 3), np.float32)
KEY = jax.random.key(0)
# The same as SciPy takes them: output → input, rows first, about the middle.
MATRICES = {
    "shear_x": lambda s: ([[1, 0], [SHEAR * s, 1]], [0, 0]),
    "shear_y": lambda s: ([[1, SHEAR * s], [0, 1]], [0, 0]),
    "translate_x": lambda s: (np.eye(2), [0, SHIFT * s]),
    "translate_y": lambda s: (np.eye(2), [SHIFT * s, 0]),
    "rotate": lambda s: (
        [[np.cos(TURN * s), np.sin(TURN * s)], [-np.sin(TURN * s), np.cos(TURN * s)]],
        [0, 0],
    ),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("strength", [-0.7, 0.4])
def test_geometry_is_that_of_scipy(name, strength):
    matrix, shift = (np.array(part, float) for part in MATRICES[name](strength))
    size = np.array([12, 16])
    offset = (size - 1) / 2 - matrix @ ((size - 1) / 2) + shift * size
    wanted = np.stack(
        [
            ndimage.affine_transform(IMAGES[0, ..., c], matrix, offset, order=1, mode="constant")
            for c in range(3)
        ],
        axis=-1,
    )
    got = OPERATIONS[name](jnp.float32(strength), IMAGES[0])
    inside = np.abs(np.asarray(got) - wanted).max(-1) < 1e-4
    assert inside.mean() > 0.8  # the rules at the border differ within a pixel
    assert inside[3:9, 5:11].all()
    assert np.abs(wanted - IMAGES[0]).max() > 0.1


@pytest.mark.parametrize("strength", [-0.5, 0.5])
def test_colors_are_those_of_pillow(strength):
    levels = np.round(255 * IMAGES[0]).astype(np.uint8)
    picture, x = Image.fromarray(levels), jnp.asarray(levels / np.float32(255))
    bits = round(BITS * abs(strength))
    wanted = {
        "brightness": ImageEnhance.Brightness(picture).enhance(1 + FACTOR * strength),
        "posterize": ImageOps.posterize(picture, 8 - bits),
        "solarize": ImageOps.solarize(picture, round(255 * (1 - abs(strength))) + 1),
        "autocontrast": ImageOps.autocontrast(picture),
        "identity": picture,
    }
    for name, one in wanted.items():
        got = 255 * np.clip(OPERATIONS[name](jnp.float32(strength), x), 0, 1)
        np.testing.assert_allclose(got, np.asarray(one, float), atol=1.01, err_msg=name)


def test_a_plain_image_has_no_contrast_to_stretch():
    plain = jnp.full((4, 4, 3), 0.25)
    np.testing.assert_allclose(OPERATIONS["autocontrast"](jnp.float32(1), plain), plain, atol=1e-6)


def test_an_image_is_changed_by_its_key_alone():
    keys = jax.random.split(KEY, len(IMAGES))
    result = np.asarray(random_augment(keys, IMAGES, operations=1, magnitude=0.5))
    assert result.shape == IMAGES.shape and result.dtype == np.float32
    assert result.min() >= 0 and result.max() <= 1 and np.isfinite(result).all()
    changed = np.abs(result - IMAGES).max((1, 2, 3)) > 1e-3
    assert changed.mean() > 0.7
    np.testing.assert_allclose(
        random_augment(keys[5:8], IMAGES[5:8], operations=1, magnitude=0.5), result[5:8], atol=1e-6
    )
    np.testing.assert_array_equal(random_augment(KEY, IMAGES, operations=0), IMAGES)


def test_a_sharded_batch_is_changed_as_a_whole_one():
    keys = jax.random.split(KEY, len(IMAGES))
    augment = functools.partial(random_augment, operations=1)
    shared = jax.jit(per_image(augment, make_mesh()))(keys, IMAGES)
    np.testing.assert_allclose(shared, augment(keys, IMAGES), atol=1e-4)


@pytest.mark.parametrize("options", [{"magnitude": 1.5}, {"magnitude": -1}, {"operations": 99}])
def test_arguments_out_of_range_are_errors(options):
    with pytest.raises(ValueError, match="magnitude must be within 0 and 1"):
        random_augment(KEY, IMAGES, **options)
