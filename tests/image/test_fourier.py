"""Convolution against OpenCV, and against a loop over pixels."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import skimage.data

from bvit.image.fourier import convolve

PHOTO = skimage.data.astronaut()[:224, 100:324].astype(np.float32) / 255
SMALL = np.stack([PHOTO[80:112, 90:118], PHOTO[20:52, 60:88]])  # 32 x 28
KERNELS = np.random.default_rng(0).random((2, 9, 9)).astype(np.float32) / 40


def opencv(image, kernel):
    """OpenCV's filter is a correlation, so its kernel is turned."""
    flipped = np.ascontiguousarray(kernel[::-1, ::-1], np.float64)
    filtered = cv2.filter2D(
        image.astype(np.float64), -1, flipped, borderType=cv2.BORDER_REFLECT_101
    )
    return filtered.reshape(image.shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_is_opencvs_with_a_kernel_for_each_image(channels):
    image = SMALL[..., :channels]
    expected = [opencv(x, k) for x, k in zip(image, KERNELS, strict=True)]
    np.testing.assert_allclose(convolve(image, KERNELS), expected, atol=1e-6)


def test_is_opencvs_on_a_photograph_with_a_large_kernel():
    kernel = np.random.default_rng(1).random((41, 41)).astype(np.float32)
    kernel /= kernel.sum()
    np.testing.assert_allclose(convolve(PHOTO, kernel), opencv(PHOTO, kernel), atol=1e-6)


def test_a_point_becomes_the_kernel():
    point = np.zeros((32, 28, 1), np.float32)
    point[16, 14] = 1
    result = convolve(point, KERNELS[0])
    np.testing.assert_allclose(result[12:21, 10:19, 0], KERNELS[0], atol=1e-7)


def test_mirrors_as_far_as_the_image_goes():
    kernel = np.zeros((15, 15), np.float32)
    kernel[0, 14] = 1  # reads the pixel seven below and seven to the left
    image = SMALL[0, :8, :8]
    mirrored = np.pad(image, [(7, 7), (7, 7), (0, 0)], mode="reflect")
    np.testing.assert_allclose(convolve(image, kernel), mirrored[14:, :8], atol=1e-6)


def test_eager_jit_vmap_and_leading_axes_agree():
    eager = convolve(SMALL, KERNELS)
    for transform in (jax.jit, jax.vmap):
        np.testing.assert_allclose(transform(convolve)(SMALL, KERNELS), eager, atol=1e-6)
    many = convolve(np.resize(SMALL, (2, 1, *SMALL.shape[1:])), KERNELS[:, None])
    np.testing.assert_allclose(many[:, 0], eager, atol=1e-6)


@pytest.mark.parametrize(("border", "mode"), [("edge", "nearest"), ("constant", "constant")])
def test_other_borders_are_those_of_scipy(border, mode):
    expected = scipy.ndimage.convolve(SMALL[0], KERNELS[0][..., None], mode=mode)
    np.testing.assert_allclose(convolve(SMALL[0], KERNELS[0], border=border), expected, atol=1e-5)


def test_bfloat16_is_rounded_once():
    image = jnp.asarray(SMALL, jnp.bfloat16)
    result = convolve(image, KERNELS)
    assert result.dtype == jnp.bfloat16
    exact = convolve(image.astype(jnp.float32), KERNELS)
    np.testing.assert_array_equal(result, exact.astype(jnp.bfloat16))


def test_gradients_are_those_of_a_bilinear_function():
    rng = np.random.default_rng(2)
    weight, direction = rng.normal(size=(2, *SMALL[0].shape))
    change = rng.normal(size=KERNELS[0].shape)

    def total(image, kernel):
        return (weight * convolve(image, kernel)).sum()

    by_image, by_kernel = jax.grad(total, (0, 1))(jnp.asarray(SMALL[0]), jnp.asarray(KERNELS[0]))
    expected = (weight * opencv(direction, KERNELS[0])).sum()
    np.testing.assert_allclose((by_image * direction).sum(), expected, rtol=1e-4)
    expected = (weight * opencv(SMALL[0], change)).sum()
    np.testing.assert_allclose((by_kernel * change).sum(), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (np.ones(9), "kernel must be"),
        (np.ones((9, 7)), "kernel must be"),
        (np.ones((3, 9, 9)), "one for each image"),
        (np.ones((8, 8)), "odd integer"),
        (np.ones((57, 57)), "use at most 55"),
        (np.ones((9, 9), np.int32), "divide it by its sum"),
    ],
)
def test_refuses_what_is_no_kernel(kernel, message):
    with pytest.raises(ValueError, match=message):
        convolve(SMALL, kernel)
