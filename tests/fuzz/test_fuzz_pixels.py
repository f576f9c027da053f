"""Functions of pixels over shapes, dtypes and values, against SciPy and NumPy in float64.

python -m pytest tests/fuzz/test_fuzz_pixels.py --fuzz-examples=20000
"""

import hypothesis
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from mutations import few

import bvit

# Each shape is compiled once.
SHAPES = ((8, 8, 3), (2, 8, 12, 3), (1, 16, 8, 1))
DTYPES = ("float32", "float16", "bfloat16")
KERNEL, PATCH = 5, 4
REACH = KERNEL // 2
GREY = np.array([0.299, 0.587, 0.114])
LAPLACIAN = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], float)

SIGMAS = st.floats(0, 1e6) | st.sampled_from((0.0, 5e-324, 1e-38, 1e-3, 1e30))
FINITE = st.floats(0, 1, width=32) | st.sampled_from((0.0, 1.0, 1e-45, 1e-38, 2**-24))


@st.composite
def images(draw, values=FINITE, shapes=SHAPES):
    """Pixels, mostly alike, of any dtype."""
    shape = draw(st.sampled_from(shapes))
    pixels = draw(arrays.arrays(np.float32, shape, elements=values, fill=values))
    return jnp.asarray(pixels, draw(st.sampled_from(DTYPES)))


def exact_blur(pixels, sigma):
    taps = np.arange(-REACH, REACH + 1.0)
    with np.errstate(all="ignore"):
        weights = np.exp(-(taps**2) / (2 * sigma**2)) if sigma**2 > 0 else taps == 0
    weights = weights / weights.sum()
    for axis in (-3, -2):
        pixels = scipy.ndimage.correlate1d(pixels, weights, axis=axis, mode="mirror")
    return pixels


@few(40)
@hypothesis.given(images(), SIGMAS)
def test_blur_is_scipys(pixels, sigma):
    found = bvit.gaussian_blur(pixels, sigma, kernel_size=KERNEL)
    assert found.shape == pixels.shape and found.dtype == pixels.dtype
    exact = exact_blur(np.float64(pixels), sigma)
    step = float(jnp.finfo(pixels.dtype).eps)
    np.testing.assert_allclose(np.float64(found), exact, atol=4 * max(step, 1e-6))


@few(40)
@hypothesis.given(images(), SIGMAS, st.data())
def test_what_is_not_finite_stays_within_the_kernel(pixels, sigma, data):
    height, width = pixels.shape[-3:-1]
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    odd = data.draw(st.sampled_from((np.nan, np.inf, -np.inf)))
    found = np.float64(
        bvit.gaussian_blur(pixels.at[..., row, column, 0].set(odd), sigma, kernel_size=KERNEL)
    )
    plain = np.float64(bvit.gaussian_blur(pixels, sigma, kernel_size=KERNEL))
    rows, columns = np.ogrid[:height, :width]
    near = (abs(rows - row) <= REACH) & (abs(columns - column) <= REACH)
    np.testing.assert_array_equal(found[..., ~near, :], plain[..., ~near, :])
    np.testing.assert_array_equal(found[..., 1:], plain[..., 1:])  # other channels
    assert not np.isfinite(found[..., row, column, 0]).any()


def exact_variance(patch):
    return scipy.ndimage.correlate(255 * (patch @ GREY), LAPLACIAN, mode="mirror").var()


@few(40)
@hypothesis.given(images(shapes=SHAPES[:2]))
def test_the_variance_of_the_laplacian_is_that_of_each_patch_in_float64(pixels):
    found = np.asarray(bvit.patch_laplacian_variance(pixels, patch_size=PATCH))
    whole = np.float64(pixels)
    for place in np.ndindex(found.shape):
        *image, row, column = place
        rows, columns = (slice(PATCH * i, PATCH * (i + 1)) for i in (row, column))
        expected = exact_variance(whole[(*image, rows, columns)])
        np.testing.assert_allclose(found[place], expected, rtol=1e-3, atol=1e-3)
    kept = np.asarray(bvit.patch_mask(pixels, patch_size=PATCH))
    clear = abs(found - 100) > 0.1
    np.testing.assert_array_equal(kept[clear], found[clear] >= 100)
