"""Resampled embeddings against Pillow's bicubic filter and least squares."""

import numpy as np
import pytest
from PIL import Image

from bvit.models import resample


def _resized(image, size):
    """Pillow's bicubic: Keys' a = -1/2, antialiased, renormalised at the border."""
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize(size[::-1], Image.BICUBIC))


def _positions(count, width=5):
    return np.random.default_rng(0).normal(size=(1, count, width)).astype(np.float32)


@pytest.mark.parametrize("grid", [(9, 9), (4, 4), (3, 8), (14, 2)])
@pytest.mark.parametrize("prefix", [0, 1])
def test_positions_are_resized_as_a_image_of_each_feature(grid, prefix):
    positions = _positions(prefix + 49)
    got = resample.resample_positions(positions, grid, prefix=prefix)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[:, :prefix], positions[:, :prefix])
    for feature in range(positions.shape[-1]):
        image = positions[0, prefix:, feature].reshape(7, 7)
        wanted = _resized(image, grid)
        np.testing.assert_allclose(
            got[0, prefix:, feature].reshape(grid), wanted, rtol=1e-4, atol=1e-5
        )


def test_positions_that_fit_are_left_alone():
    positions = _positions(50)
    assert resample.resample_positions(positions, (7, 7), prefix=1) is positions


@pytest.mark.parametrize("grid", [(7, 7), (4, 4)])
def test_a_class_token_without_a_position_gets_zeros(grid):
    got = resample.resample_positions(_positions(49), grid, prefix=1)
    assert got.shape[1] == 1 + grid[0] * grid[1] and not got[:, 0].any()


def test_positions_of_no_square_are_refused():
    with pytest.raises(ValueError, match="got 48 positions, which are not 1 more than a square"):
        resample.resample_positions(_positions(48), (4, 4), prefix=1)


def _kernel(side):
    return np.random.default_rng(1).normal(size=(side, side, 3, 2)).astype(np.float32)


@pytest.mark.parametrize("old, new", [(4, 8), (4, 7), (6, 9)])
def test_an_enlarged_patch_is_embedded_as_the_patch_was(old, new):
    patch = np.random.default_rng(2).normal(size=(old, old, 3))
    enlarged = np.stack([_resized(patch[..., c], (new, new)) for c in range(3)], axis=-1)
    kernel = _kernel(old)
    wanted = np.einsum("pqc,pqcw->w", patch, kernel)
    got = np.einsum("pqc,pqcw->w", enlarged, resample.resample_patch_kernel(kernel, new))
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("old, new", [(8, 4), (7, 5)])
def test_a_shrunk_patch_is_embedded_as_nearly_as_can_be(old, new):
    # Over white patches x: the kernel v with the least |x.w - Bx.v|^2, B resizing the whole patch.
    basis = np.eye(old**2).reshape(-1, old, old)
    resize = np.stack([_resized(b, (new, new)).ravel() for b in basis], axis=-1)
    kernel = _kernel(old)
    wanted = np.linalg.lstsq(resize.T, kernel.reshape(old**2, -1), rcond=None)[0]
    got = resample.resample_patch_kernel(kernel, new)
    np.testing.assert_allclose(got, wanted.reshape(new, new, 3, 2), rtol=1e-3, atol=1e-4)


def test_a_kernel_that_fits_is_left_alone():
    kernel = _kernel(4)
    assert resample.resample_patch_kernel(kernel, 4) is kernel
