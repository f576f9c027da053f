import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from skimage import data

import bvit
from bvit.image import evidence
from bvit.image.focus_map import focus_map, resampling
from bvit.image.motion import estimate_motion
from bvit.image.sigma_map import blur_map


@pytest.fixture(scope="module")
def photograph():
    return jnp.asarray(data.astronaut()[:192, 96:320] / 255, jnp.float32)


def energies_by_loops(grey):
    """The definition, pixel by pixel, in float64."""
    grey = grey.astype(np.float64)
    found, side, diagonal = [], 8, None
    for scale in range(3):
        height, width = grey.shape
        padded = np.pad(grey, 1, mode="edge")
        values = np.zeros((5, height, width))
        for y in range(height):
            for x in range(width):
                here, right = padded[y + 1, x + 1], padded[y + 1, x + 2]
                below, corner = padded[y + 2, x + 1], padded[y + 2, x + 2]
                dx, dy = (right - here + corner - below) / 2, (below - here + corner - right) / 2
                around = padded[y, x + 1] + padded[y + 1, x] + right + below
                mixed = (corner - below - right + here) / 2
                values[:, y, x] = dx * dx, dy * dy, dx * dy, (around - 4 * here) ** 2, mixed**2
        cells = values.reshape(5, height // side, side, width // side, side).mean((2, 4))
        found += list(cells[:4])
        diagonal = cells[4] if scale == 0 else diagonal
        grey = grey.reshape(height // 2, 2, width // 2, 2).mean((1, 3))
        side //= 2
    return np.stack([*found, diagonal, grey])


def test_cell_energies_are_those_of_loops():
    grey = np.random.default_rng(0).uniform(0, 255, (24, 32)).astype(np.float32)
    found = jax.jit(evidence.cell_energies)(grey)
    assert found.shape == (evidence.CHANNELS, 3, 4)
    np.testing.assert_allclose(found, energies_by_loops(grey), rtol=1e-4, atol=1e-2)


def test_noise_is_measured():
    noise = np.random.default_rng(0).normal(128, 5, (256, 256)).astype(np.float32)
    cells = evidence.cell_energies(noise)
    valid = jnp.ones((32, 32), bool)
    np.testing.assert_allclose(evidence.noise_variance(cells, valid), 25, rtol=0.1)
    # Clipped cells show no noise, and count not.
    dark = cells.at[:, :16].set(0.0)
    np.testing.assert_allclose(evidence.noise_variance(dark, valid), 25, rtol=0.15)
    assert evidence.noise_variance(jnp.zeros_like(cells), valid) == 0


@pytest.mark.parametrize("patch_size", [1, 3, 8, 12, 16, 100])
def test_patches_are_means_of_the_cells_they_share(patch_size):
    side, count = 45, 6
    weights = resampling(side, count, patch_size)
    assert weights.shape == (-(-side // patch_size), count)
    np.testing.assert_allclose(weights.sum(1), 1)
    for row, start in zip(weights, range(0, side, patch_size), strict=True):
        end = min(start + patch_size, side)
        if patch_size >= 8:
            shares = np.bincount(np.arange(start, end) // 8, minlength=count) / (end - start)
            np.testing.assert_allclose(row, shares)
        else:
            place = np.clip((start + end) / 2, 4, 8 * count - 4)
            np.testing.assert_allclose(row @ (8 * np.arange(count) + 4), place)


def test_sharp_and_blurred_regions_are_told_apart(photograph):
    blurred = bvit.gaussian_blur(photograph, 2.5)
    left = jnp.arange(224)[:, None] < 112
    seen = jnp.stack([photograph, blurred, jnp.where(left, photograph, blurred)])
    rng = np.random.default_rng(0)
    seen = jnp.clip(seen + 3 / 255 * rng.normal(size=seen.shape).astype(np.float32), 0, 1)
    found = focus_map(seen)
    contrast = np.asarray(photograph).mean(-1).reshape(12, 16, 14, 16).std((1, 3)) > 0.05
    assert (found[0][contrast] > found[1][contrast]).mean() > 0.97
    assert np.median(found[0][contrast]) > 0.5 > np.median(found[1][contrast])
    assert np.median(found[1][contrast]) < 0.1
    # Each half as in the picture that it comes from, but for what lies next to the border.
    np.testing.assert_allclose(found[2][:, :2], found[0][:, :2], atol=0.1)
    np.testing.assert_allclose(found[2][:, -2:], found[1][:, -2:], atol=0.1)


def test_where_nothing_tells_it_says_so(photograph):
    np.testing.assert_allclose(focus_map(jnp.full_like(photograph, 0.4)), 0.5, atol=1e-3)
    half = photograph.at[:, :112].set(0.6)
    np.testing.assert_allclose(focus_map(half)[:, :3], 0.5, atol=0.02)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 50, 1), (17, 16, 3)])
def test_any_height_and_width(shape):
    image = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    found = focus_map(image)
    assert found.shape == (-(-shape[0] // 16), -(-shape[1] // 16))
    assert np.all((found >= 0) & (found <= 1))


def test_batch_axes_transformations_and_dtypes_agree(photograph):
    images = photograph[:96].reshape(96, 2, 112, 3).swapaxes(0, 1)[:, None]
    found = focus_map(images, patch_size=20)
    assert found.shape == (2, 1, 5, 6)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[1, 0], focus_map(images[1, 0], patch_size=20), atol=1e-5)
    mapped = jax.jit(jax.vmap(lambda x: focus_map(x, patch_size=20)))(images)
    np.testing.assert_allclose(found, mapped, atol=1e-5)


def test_grey_and_half_precision(photograph):
    image = photograph[:64, :64].astype(jnp.float16)
    half = focus_map(image)
    assert half.dtype == jnp.float32
    grey = (image.astype(jnp.float32) @ jnp.asarray([0.299, 0.587, 0.114]))[..., None]
    np.testing.assert_allclose(focus_map(grey), half, atol=0.02)


def test_sharded_over_devices(photograph):
    images = jnp.stack([photograph[:64, i : i + 64] for i in range(8)])
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    axis = PartitionSpec("data")
    sharded = jax.shard_map(focus_map, mesh=mesh, in_specs=axis, out_specs=axis, check_vma=False)
    np.testing.assert_allclose(jax.jit(sharded)(images), focus_map(images), atol=1e-5)


def test_gradients_are_finite(photograph):
    slope = jax.jit(jax.grad(lambda x: focus_map(x).sum()))
    of_photograph = slope(photograph[:64, :64])
    assert np.isfinite(of_photograph).all()
    assert np.abs(of_photograph).max() > 0
    assert np.isfinite(slope(jnp.full((64, 64, 3), 0.4))).all()


@pytest.mark.parametrize("function", [focus_map, blur_map])
def test_what_is_no_image_is_refused(function):
    with pytest.raises(ValueError, match="to_float"):
        function(np.zeros((8, 8, 3), np.uint8))
    for patch_size in (0, 2.5):
        with pytest.raises(ValueError, match=r"patch_size must be an integer >= 1"):
            function(np.zeros((8, 8, 3), np.float32), patch_size=patch_size)


def test_sigma_is_estimated(photograph):
    # Halved, so that the photograph is sharp to the pixel.
    small = jax.image.resize(photograph, (96, 112, 3), "linear")
    sigmas = (1.0, 2.0, 4.0)
    blurred = jnp.stack([bvit.gaussian_blur(small, s, kernel_size=41) for s in sigmas])
    found = blur_map(blurred)
    assert found.sigma.shape == (3, 6, 7)
    assert np.all((found.confidence >= 0) & (found.confidence <= 1))
    for sigma, estimate in zip(sigmas, found.sigma, strict=True):
        assert abs(np.median(estimate) - sigma) < 0.3 * sigma


@pytest.mark.parametrize(("length", "angle"), [(9.0, -50.0), (18.0, 30.0)])
def test_a_motion_is_found(length, angle):
    image = jnp.asarray(data.astronaut()[:256, :256] / 255, jnp.float32)
    found = estimate_motion(bvit.image.motion_blur(image, length, angle))
    assert abs((found.angle - angle + 90) % 180 - 90) < 10
    assert abs(found.length - length) < 0.2 * length
    assert 0 <= found.confidence <= 1


def test_a_motion_needs_room():
    with pytest.raises(ValueError, match="at least 128×128 pixels: got 100×200"):
        estimate_motion(np.zeros((100, 200, 3), np.float32))
    with pytest.raises(ValueError, match="noise must be one number"):
        estimate_motion(np.zeros((2, 128, 128, 3), np.float32), np.zeros(3))
