"""Focus measures and masks against OpenCV, patch by patch in float64."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from jax.sharding import AxisType, Mesh, PartitionSpec

from bvit.image import (
    gaussian_blur,
    mask_patches,
    patch_laplacian_variance,
    patch_mask,
    to_float,
)

PHOTOS = np.stack(
    [
        photo[40:232, 100:324]  # 192 x 224
        for photo in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())
    ]
)
SMALL = PHOTOS[:, 60:92, 60:108].astype(np.float32) / 255  # 32 x 48


def opencv_variance(grey, patch_size, border):
    """Of one grey image, 0-255: a loop over patches."""
    whole = cv2.Laplacian(grey.astype(np.float64), cv2.CV_64F)
    rows, columns = (size // patch_size for size in grey.shape)
    variance = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            patch = np.s_[
                i * patch_size : (i + 1) * patch_size, j * patch_size : (j + 1) * patch_size
            ]
            # A view would let OpenCV see the neighbouring patches, so give it a copy.
            alone = cv2.Laplacian(grey[patch].astype(np.float64), cv2.CV_64F)
            variance[i, j] = (alone if border == "patch" else whole[patch]).var()
    return variance


def exact_grey(image):
    return 255 * image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def over_all_devices(function):
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    split = PartitionSpec("data")
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split))


def scores(image):
    return patch_laplacian_variance(image, patch_size=8)


class TestPatchLaplacianVariance:
    @pytest.mark.parametrize("border", ["patch", "image"])
    @pytest.mark.parametrize("patch_size", [2, 4, 16])
    def test_is_opencvs_in_float64(self, patch_size, border):
        expected = [opencv_variance(exact_grey(image), patch_size, border) for image in SMALL]
        result = patch_laplacian_variance(SMALL, patch_size=patch_size, border=border)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-3)

    @pytest.mark.parametrize("border", ["patch", "image"])
    def test_quantized_is_opencvs_on_8_bit_photographs(self, border):
        expected = [
            opencv_variance(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), 16, border) for photo in PHOTOS
        ]

        @jax.jit
        def from_8_bit(image):
            return patch_laplacian_variance(
                to_float(image), patch_size=16, border=border, quantize=True
            )

        np.testing.assert_allclose(from_8_bit(PHOTOS), expected, rtol=1e-5)

    def test_the_grey_is_rounded_before_the_laplacian(self):
        ramp = np.broadcast_to(np.linspace(0, 0.4, 16)[:, None] / 255, (16, 16))
        image = np.stack([ramp] * 3, -1).astype(np.float32)
        assert patch_laplacian_variance(image, patch_size=16).item() > 0
        assert patch_laplacian_variance(image, patch_size=16, quantize=True).item() == 0

    def test_one_patch_may_be_the_whole_image(self):
        square = SMALL[:, :, :32]
        alone, whole = (
            patch_laplacian_variance(square, patch_size=32, border=border)
            for border in ("patch", "image")
        )
        np.testing.assert_allclose(alone, whole, rtol=1e-6)

    def test_brightness_does_not_matter_and_contrast_counts_squared(self):
        dark = SMALL * 0.5
        np.testing.assert_allclose(scores(dark + 0.4), scores(dark), rtol=2e-3, atol=1e-2)
        np.testing.assert_allclose(scores(dark), scores(SMALL) / 4, rtol=1e-4)
        assert scores(np.full((16, 16, 3), 0.3, np.float32)).max() < 1e-6

    def test_falls_with_blur(self):
        mean = [scores(gaussian_blur(SMALL, s)).mean(axis=(1, 2)) for s in (0.0, 0.7, 1.4, 2.8)]
        assert (np.diff(mean, axis=0) < 0).all()

    @pytest.mark.parametrize("batch", [(), (6,), (2, 3), (1, 3, 2)])
    def test_any_leading_axes(self, batch):
        image = np.resize(SMALL, (*batch, 32, 48, 3))
        result = scores(image)
        assert result.shape == (*batch, 4, 6)
        expected = [scores(x) for x in image.reshape(-1, 32, 48, 3)]
        np.testing.assert_allclose(result.reshape(-1, 4, 6), expected, rtol=1e-5)

    def test_eager_jit_vmap_and_shard_map_agree(self):
        # More than are taken at once on a CPU.
        image = np.resize(SMALL, (288, *SMALL.shape[1:]))
        eager = scores(image)
        for transform in (jax.jit, jax.vmap, over_all_devices):
            np.testing.assert_allclose(transform(scores)(image), eager, rtol=1e-5, atol=1e-3)

    def test_bfloat16_pixels_are_scored_in_float32(self):
        image = jnp.asarray(SMALL, jnp.bfloat16)
        assert scores(image).dtype == jnp.float32
        np.testing.assert_allclose(scores(image), scores(image.astype(jnp.float32)), rtol=1e-6)

    @pytest.mark.parametrize("quantize", [False, True])
    def test_gradients_are_finite(self, quantize):
        def total(image):
            return patch_laplacian_variance(image, patch_size=8, quantize=quantize).sum()

        for image in (jnp.asarray(SMALL), jnp.zeros_like(SMALL)):
            assert jnp.isfinite(jax.grad(total)(image)).all()

    def test_the_gradient_is_a_difference_quotient(self):
        direction = np.random.default_rng(0).normal(size=SMALL.shape)
        gradient = jax.grad(lambda x: scores(x).sum())(jnp.asarray(SMALL))
        above, below = (
            sum(opencv_variance(exact_grey(x), 8, "patch").sum() for x in SMALL + step * direction)
            for step in (1e-4, -1e-4)
        )
        np.testing.assert_allclose((gradient * direction).sum(), (above - below) / 2e-4, rtol=1e-3)

    @pytest.mark.parametrize("patch_size", [15, 0, -16, 64])
    def test_refuses_patches_that_do_not_fit(self, patch_size):
        with pytest.raises(ValueError, match=f"got image 32×48, patch_size={patch_size}; use"):
            patch_laplacian_variance(SMALL, patch_size=patch_size)

    @pytest.mark.parametrize("bad", [SMALL[..., :1], SMALL[..., 0], PHOTOS])
    def test_refuses_what_is_not_rgb_in_floats(self, bad):
        with pytest.raises(ValueError, match="must"):
            patch_laplacian_variance(bad, patch_size=8)

    def test_refuses_another_border(self):
        with pytest.raises(ValueError, match='border must be "patch" or "image": got \'zero\''):
            patch_laplacian_variance(SMALL, patch_size=8, border="zero")


class TestPatchMask:
    def test_keeps_what_reaches_a_hundred(self):
        variance = np.asarray(patch_laplacian_variance(PHOTOS / np.float32(255), patch_size=16))
        keep = patch_mask(PHOTOS / np.float32(255), patch_size=16)
        assert keep.dtype == jnp.bool_
        np.testing.assert_array_equal(keep, variance >= 100)
        assert 0.02 < keep.mean() < 0.98

    def test_the_papers_other_sentence_keeps_the_rest(self):
        sharp = patch_mask(SMALL, patch_size=8, remove="sharp")
        np.testing.assert_array_equal(sharp, ~patch_mask(SMALL, patch_size=8))

    def test_a_patch_at_the_threshold_is_kept(self):
        flat = np.zeros((16, 16, 3), np.float32)
        assert patch_mask(flat, patch_size=8, threshold=0.0).all()
        assert patch_mask(flat, patch_size=8, threshold=0.0, remove="sharp").all()
        assert not patch_mask(flat, patch_size=8, threshold=1e-6).any()

    def test_passes_its_options_on(self):
        options = {"border": "image", "quantize": True}
        variance = np.asarray(patch_laplacian_variance(SMALL, patch_size=4, **options))
        threshold = float(np.median(variance)) + 1e-3
        keep = patch_mask(SMALL, patch_size=4, threshold=threshold, **options)
        np.testing.assert_array_equal(keep, variance >= threshold)
        assert (keep != patch_mask(SMALL, patch_size=4, threshold=threshold)).any()

    def test_eager_jit_vmap_and_shard_map_agree(self):
        image = np.resize(SMALL, (2 * jax.device_count(), *SMALL.shape[1:]))

        def mask(x):
            return patch_mask(x, patch_size=8)

        for transform in (jax.jit, jax.vmap, over_all_devices):
            np.testing.assert_array_equal(transform(mask)(image), mask(image))

    def test_refuses_another_word_for_remove(self):
        with pytest.raises(ValueError, match='remove must be "blurry" or "sharp": got \'dull\''):
            patch_mask(SMALL, patch_size=8, remove="dull")


class TestMaskPatches:
    KEEP = np.random.default_rng(0).random((3, 4, 6)) < 0.5

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_multiplies_by_the_enlarged_mask(self, channels, dtype):
        image = jnp.asarray(SMALL[..., :channels], dtype)
        result = mask_patches(image, self.KEEP, patch_size=8)
        assert result.dtype == dtype
        expected = image * np.kron(self.KEEP, np.ones((8, 8)))[..., None].astype(dtype)
        assert (result == expected).all()

    def test_removes_even_what_is_not_a_number(self):
        image = np.where(np.kron(self.KEEP, np.ones((8, 8)))[..., None], SMALL, np.nan)
        assert jnp.isfinite(mask_patches(image, self.KEEP, patch_size=8)).all()

    def test_leading_axes_jit_vmap_and_shard_map_agree(self):
        image = np.resize(SMALL, (2 * jax.device_count(), *SMALL.shape[1:]))
        keep = np.resize(self.KEEP, (len(image), 4, 6))

        def mask(x, kept):
            return mask_patches(x, kept, patch_size=8)

        eager = mask(image, keep)
        for transform in (jax.jit, jax.vmap, over_all_devices):
            np.testing.assert_array_equal(transform(mask)(image, keep), eager)
        pairs = mask(image.reshape(2, -1, 32, 48, 3), keep.reshape(2, -1, 4, 6))
        np.testing.assert_array_equal(pairs.reshape(image.shape), eager)
        np.testing.assert_array_equal(mask(image[1], keep[1]), eager[1])

    def test_the_gradient_is_the_mask(self):
        gradient = jax.grad(lambda x: mask_patches(x, self.KEEP, patch_size=8).sum())(
            jnp.asarray(SMALL)
        )
        np.testing.assert_array_equal(gradient[..., 0], np.kron(self.KEEP, np.ones((8, 8))))

    @pytest.mark.parametrize(
        "keep", [KEEP[:, :2], KEEP[0], KEEP.astype(np.float32), np.ones((3, 24), bool)]
    )
    def test_refuses_a_mask_of_another_shape_or_kind(self, keep):
        with pytest.raises(ValueError, match=r"keep must be bool of shape \(3, 4, 6\)"):
            mask_patches(SMALL, keep, patch_size=8)

    def test_refuses_patches_that_do_not_fit(self):
        with pytest.raises(ValueError, match="patch_size=7"):
            mask_patches(SMALL, self.KEEP, patch_size=7)
