"""Patches against loops in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from bvit.image.patches import block_values, check_patch_size, halve, nearest, patchify

RNG = np.random.default_rng(0)


def test_patchify_is_raster_order_of_flattened_patches():
    image = RNG.normal(size=(2, 8, 12, 3)).astype(np.float32)
    expected = [
        [one[i : i + 4, j : j + 4].ravel() for i in range(0, 8, 4) for j in range(0, 12, 4)]
        for one in image
    ]
    np.testing.assert_array_equal(patchify(jnp.asarray(image), 4), expected)


def test_block_values_leave_an_odd_row_and_column_out():
    x = np.arange(5 * 7.0).reshape(5, 7)
    expected = [[x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].ravel() for j in range(3)] for i in (0, 1)]
    np.testing.assert_array_equal(block_values(jnp.asarray(x), 2), expected)


@pytest.mark.parametrize("shape", [(8, 12), (7, 5)])
def test_halve_averages_pixels(shape):
    image = RNG.normal(size=(2, *shape, 3)).astype(np.float32)
    rows, columns = shape[0] // 2, shape[1] // 2
    blocks = image[:, : 2 * rows, : 2 * columns].reshape(2, rows, 2, columns, 2, 3)
    np.testing.assert_allclose(halve(jnp.asarray(image)), blocks.mean((2, 4)), rtol=1e-5, atol=1e-6)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image 224×224, patch_size=15; use 14 or 16"):
        check_patch_size((224, 224), 15)
    with pytest.raises(ValueError, match="image 6×10, patch_size=0; use 1"):
        check_patch_size((6, 10), 0)
    with pytest.raises(ValueError, match="image 6×10, patch_size=3; use 2"):
        patchify(np.zeros((6, 10, 3)), 3)


@pytest.mark.parametrize(("wanted", "text"), [(5, "4 or 7"), (4, "4 or 7"), (0, "1"), (9, "7")])
def test_nearest(wanted, text):
    assert nearest(wanted, [1, 4, 7]) == text
