"""The border of bvit.image: what it takes, and what it says to anything else."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from bvit.image import pixels

PHOTO = skimage.data.astronaut()[100:164, 180:244]


@pytest.mark.parametrize("shape", [(4, 5, 3), (2, 4, 5, 1), (2, 3, 4, 5, 3)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_takes_float_images_with_any_batch_axes(shape, dtype):
    pixels.check_image(jnp.zeros(shape, dtype))
    jax.eval_shape(pixels.check_image, jnp.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("image", "channels", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), None, r"got uint8; .*to_float\(image\)"),
        (np.zeros((4, 4, 3), np.int32), None, "got int32"),
        (np.zeros((4, 4), np.float32), None, r"shape \(4, 4\); .*image\[\.\.\., None\]"),
        (np.zeros((7, 4, 5), np.float32), None, r"1 or 3 channels.*image\[\.\.\., None\]"),
        (np.zeros((4, 4, 1), np.float32), 3, "must have 3 channels.*jnp.repeat"),
        (np.zeros((4, 4, 4), np.float32), 3, r"alpha channel with image\[\.\.\., :3\]"),
        (np.zeros((2, 3, 4, 5), np.float32), 3, r"jnp\.moveaxis\(image, -3, -1\)"),
        (np.zeros((2, 0, 4, 3), np.float32), None, "no pixels"),
    ],
)
def test_refuses_anything_else_and_says_how_to_convert(image, channels, message):
    with pytest.raises(ValueError, match=message):
        pixels.check_image(image, channels=channels)


def test_names_the_argument():
    with pytest.raises(ValueError, match="^image must be floating"):
        pixels.check_image(np.zeros((4, 4, 3), np.uint8), "image")


def test_to_float_keeps_every_8_bit_value():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    floats = jax.jit(pixels.to_float)(values)
    assert floats.dtype == jnp.float32
    np.testing.assert_allclose(floats, values / 255, rtol=1e-7)
    np.testing.assert_array_equal(np.rint(np.asarray(floats) * 255), values)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int32])
def test_to_float_takes_8_bit_pixels_alone(dtype):
    with pytest.raises(ValueError, match="takes uint8 pixels"):
        pixels.to_float(np.zeros((4, 4, 3), dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalize_is_by_channel_and_keeps_the_dtype(dtype):
    image = jnp.asarray(PHOTO / 255.0, dtype)
    result = pixels.normalize(image)
    assert result.dtype == dtype
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (np.asarray(image, np.float64) - mean) / std
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(np.asarray(result, np.float64), expected, atol=tolerance)


def test_normalize_takes_one_number_for_all_channels_but_not_two():
    image = np.full((2, 4, 4, 3), 0.75, np.float32)
    np.testing.assert_allclose(pixels.normalize(image, mean=[0.5], std=[0.5]), 0.5)
    with pytest.raises(ValueError, match="std must have one value, or one for each of the 3"):
        pixels.normalize(image, std=(0.5, 0.5))


def test_grayscale_is_opencvs():
    image = (PHOTO / 255.0).astype(np.float32)
    grey = pixels.grayscale(np.stack([image, image[::-1]]))
    np.testing.assert_allclose(grey[0], cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), atol=1e-6)
    np.testing.assert_array_equal(grey[1], grey[0][::-1])
    assert pixels.grayscale(jnp.asarray(image, jnp.bfloat16)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="3 channels"):
        pixels.grayscale(image[..., :1])
