"""Gaussian blur against SciPy and OpenCV; the random forms against what they promise."""

import re
import warnings
from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import skimage.data
from jax.sharding import AxisType, Mesh, PartitionSpec

from bvit.image import gaussian_blur, random_gaussian_blur, region_blur

PHOTOS = np.stack(
    [
        photo[50:178, 160:288].astype(np.float32) / 255
        for photo in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())
    ]
)
SMALL = PHOTOS[:, 30:62, 40:68]  # 32 x 28: not square, to tell height from width


def gaussian_taps(sigma, kernel_size):
    """As torchvision writes them down."""
    half = (kernel_size - 1) / 2
    weights = np.exp(-0.5 * (np.linspace(-half, half, kernel_size) / sigma) ** 2)
    return weights / weights.sum()


def scipy_blur(image, sigma, kernel_size):
    """One image [h, w, c] in float64; SciPy's "mirror" does not repeat the edge pixel."""
    taps = gaussian_taps(sigma, kernel_size)
    once = scipy.ndimage.correlate1d(image.astype(np.float64), taps, axis=0, mode="mirror")
    return scipy.ndimage.correlate1d(once, taps, axis=1, mode="mirror")


# Fewer taps compile faster, where their number does not matter.
short_region_blur = partial(region_blur, kernel_size=5)
short_random_blur = partial(random_gaussian_blur, kernel_size=5)


def one_key_each(key, count):
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def over_all_devices(function):
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    split = PartitionSpec("data")
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split))


class TestGaussianBlur:
    @pytest.mark.parametrize("kernel_size", [1, 3, 19, 31])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_is_scipys_with_a_sigma_for_each_image(self, kernel_size, channels):
        image, sigma = SMALL[..., :channels], np.array([0.3, 1.5, 4.0])
        expected = [scipy_blur(x, s, kernel_size) for x, s in zip(image, sigma, strict=True)]
        result = gaussian_blur(image, sigma, kernel_size=kernel_size)
        np.testing.assert_allclose(result, expected, atol=1e-6)

    @pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 3.7])
    def test_is_opencvs_on_photographs(self, sigma):
        expected = [
            cv2.GaussianBlur(photo, (19, 19), sigma, borderType=cv2.BORDER_REFLECT_101)
            for photo in PHOTOS
        ]
        np.testing.assert_allclose(gaussian_blur(PHOTOS, sigma), expected, atol=2e-6)

    def test_reflects_as_far_as_the_image_goes(self):
        image = SMALL[0, :10, :12]
        expected = scipy_blur(image, 5.0, 19)
        np.testing.assert_allclose(gaussian_blur(image, 5.0), expected, atol=1e-6)

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_sigma_zero_is_exactly_the_identity(self, dtype):
        image = jnp.asarray(SMALL, dtype)
        result = gaussian_blur(image, jnp.array([0.0, 1.0, 0.0]))
        assert (result[::2] == image[::2]).all()
        assert not (result[1] == image[1]).all()
        assert (jax.jit(gaussian_blur)(image, 0.0) == image).all()

    def test_leaves_a_constant_image_and_adds_up_to_one(self):
        constant = np.full((2, 20, 20, 3), 0.7, np.float32)
        np.testing.assert_allclose(gaussian_blur(constant, 2.0), constant, rtol=1e-6)

    @pytest.mark.parametrize("batch", [(), (4,), (2, 2), (2, 1, 2), (0,)])
    def test_any_leading_axes(self, batch):
        count = int(np.prod(batch))
        image = np.resize(PHOTOS[:, :24, :20], (count, 24, 20, 3))
        sigma = np.linspace(0.5, 2, count, dtype=np.float32)
        expected = [gaussian_blur(x, s) for x, s in zip(image, sigma, strict=True)]
        result = gaussian_blur(image.reshape(*batch, 24, 20, 3), sigma.reshape(batch))
        assert result.shape == (*batch, 24, 20, 3)
        if count:
            np.testing.assert_allclose(result.reshape(image.shape), expected, atol=1e-6)

    def test_eager_jit_and_vmap_agree_in_and_beyond_one_chunk(self):
        # 50 images of 96 x 96 x 3 are more than are taken at once on a CPU, and no multiple of it.
        image = np.resize(PHOTOS[:, :96, :96], (50, 96, 96, 3))
        sigma = np.linspace(0, 2, 50, dtype=np.float32)
        eager = gaussian_blur(image, sigma)
        np.testing.assert_allclose(eager[-1], scipy_blur(image[-1], sigma[-1], 19), atol=1e-6)
        np.testing.assert_allclose(jax.jit(gaussian_blur)(image, sigma), eager, atol=1e-6)
        np.testing.assert_allclose(jax.vmap(gaussian_blur)(image, sigma), eager, atol=1e-6)
        halves = image.reshape(2, 25, 96, 96, 3), sigma.reshape(2, 25)
        vmapped = jax.vmap(gaussian_blur)(*halves)
        np.testing.assert_allclose(vmapped.reshape(image.shape), eager, atol=1e-6)

    def test_vmap_of_a_chunked_call(self):
        image = np.resize(PHOTOS[:, :96, :96], (2, 50, 96, 96, 3))
        result = jax.vmap(lambda x: gaussian_blur(x, 1.5))(image)
        np.testing.assert_allclose(result[1, 7], scipy_blur(image[1, 7], 1.5, 19), atol=1e-6)

    def test_shard_map(self):
        image = np.resize(SMALL, (2 * jax.device_count(), *SMALL.shape[1:]))
        sigma = np.linspace(0, 2, len(image), dtype=np.float32)
        result = over_all_devices(gaussian_blur)(image, sigma)
        np.testing.assert_allclose(result, gaussian_blur(image, sigma), atol=1e-6)

    def test_bfloat16_is_rounded_once(self):
        image = jnp.asarray(SMALL, jnp.bfloat16)
        result = gaussian_blur(image, 1.5)
        assert result.dtype == jnp.bfloat16
        exact = gaussian_blur(image.astype(jnp.float32), 1.5)
        np.testing.assert_array_equal(
            result.astype(jnp.float32), exact.astype(jnp.bfloat16).astype(jnp.float32)
        )

    def test_sigmas_gradient_is_scipys_difference_quotient(self):
        weight = np.random.default_rng(0).normal(size=SMALL.shape)
        gradient = jax.grad(lambda s: (weight * gaussian_blur(SMALL, s)).sum())(
            jnp.array([0.8, 1.5, 3.0])
        )
        step = 1e-4
        for i, sigma in enumerate([0.8, 1.5, 3.0]):
            above, below = (scipy_blur(SMALL[i], sigma + d, 19) for d in (step, -step))
            expected = (weight[i] * (above - below)).sum() / (2 * step)
            np.testing.assert_allclose(gradient[i], expected, rtol=1e-3)

    def test_the_images_gradient_is_the_adjoint(self):
        rng = np.random.default_rng(1)
        weight, direction = rng.normal(size=(2, *SMALL.shape))
        gradient = jax.grad(lambda x: (weight * gaussian_blur(x, 1.5)).sum())(jnp.asarray(SMALL))
        expected = sum(
            (weight[i] * scipy_blur(direction[i], 1.5, 19)).sum() for i in range(len(SMALL))
        )
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-4)

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    @pytest.mark.parametrize("sigma", [0.0, 1e-30, 0.02, 0.1, 1.5, 1e6])
    def test_gradients_are_finite_at_any_sigma(self, sigma, dtype):
        image = jnp.asarray(SMALL, dtype)

        def energy(x, s):
            return (gaussian_blur(x, s, kernel_size=7) ** 2).sum()

        by_image, by_sigma = jax.grad(energy, (0, 1))(image, jnp.full(3, sigma))
        assert jnp.isfinite(by_image).all()
        assert jnp.isfinite(by_sigma).all()

    @pytest.mark.parametrize("kernel_size", [0, 2, -3, 19.0, 2.5])
    def test_refuses_a_kernel_that_is_not_odd(self, kernel_size):
        with pytest.raises(ValueError, match="kernel_size must be an odd integer"):
            gaussian_blur(SMALL, 1.0, kernel_size=kernel_size)

    def test_refuses_a_kernel_that_reaches_past_the_mirrored_image(self):
        with pytest.raises(ValueError, match="got image 9x28, kernel_size=19; use at most 17"):
            gaussian_blur(SMALL[:, :9], 1.0)
        gaussian_blur(SMALL[:, :9], 1.0, kernel_size=17)

    @pytest.mark.parametrize("sigma", [-1.0, np.nan, np.array([1.0, -0.5, 1.0])])
    def test_refuses_a_negative_sigma(self, sigma):
        with pytest.raises(ValueError, match="sigma must be >= 0"):
            gaussian_blur(SMALL, sigma)

    def test_refuses_torchvisions_second_argument_and_its_advice_works(self):
        with pytest.raises(ValueError, match=r"torchvision's kernel_size; write") as error:
            gaussian_blur(SMALL, 9)
        advice = re.search(r"gaussian_blur\(image, .*?\)", str(error.value)).group()
        result = eval(advice, {"gaussian_blur": gaussian_blur, "image": SMALL})
        np.testing.assert_allclose(result, gaussian_blur(SMALL, 1.7, kernel_size=9), atol=1e-6)

    def test_warns_where_the_kernel_cuts_the_gaussian_off(self):
        with pytest.warns(UserWarning, match="ends before 2 sigma for a sigma of 5"):
            gaussian_blur(SMALL, 5.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gaussian_blur(SMALL, 4.5)
            gaussian_blur(PHOTOS, 5.0, kernel_size=None)

    def test_no_kernel_size_fits_the_kernel_to_sigma(self):
        expected = gaussian_blur(SMALL, np.array([0.5, 2.0, 1.0]), kernel_size=13)
        result = gaussian_blur(SMALL, jnp.array([0.5, 2.0, 1.0]), kernel_size=None)
        np.testing.assert_array_equal(result, expected)
        np.testing.assert_array_equal(gaussian_blur(SMALL, 0.0, kernel_size=None), SMALL)
        with pytest.raises(ValueError, match="sigma, which is traced here"):
            jax.jit(lambda s: gaussian_blur(SMALL, s, kernel_size=None))(1.0)
        with pytest.raises(ValueError, match="must be finite: got inf"):
            gaussian_blur(SMALL, np.inf, kernel_size=None)

    @pytest.mark.parametrize(("border", "mode"), [("edge", "nearest"), ("constant", "constant")])
    def test_borders_are_those_of_scipy(self, border, mode):
        image = SMALL[0, :5]  # smaller than the kernel, which only a mirrored border forbids
        expected = image
        for axis in (0, 1):
            expected = scipy.ndimage.gaussian_filter1d(expected, 1.5, axis, radius=9, mode=mode)
        result = gaussian_blur(image, 1.5, border=border)
        np.testing.assert_allclose(result, expected, atol=2e-6)

    def test_refuses_an_unknown_border(self):
        with pytest.raises(ValueError, match="no border mode is called 'wrap'"):
            gaussian_blur(SMALL, 1.0, border="wrap")

    @pytest.mark.parametrize("shape", [(1,), (2,), (3, 1)])
    def test_refuses_sigmas_that_are_not_one_an_image(self, shape):
        with pytest.raises(ValueError, match="one for each image: got shape"):
            gaussian_blur(SMALL, np.ones(shape))

    def test_refuses_what_is_no_image_before_anything_compiles(self):
        with pytest.raises(ValueError, match="got uint8"):
            jax.eval_shape(lambda x: gaussian_blur(x, 1.0), np.zeros((20, 20, 3), np.uint8))


class TestRandomGaussianBlur:
    def test_sigmas_are_uniform_over_the_range(self):
        count, low, high = 300, 1.0, 2.0
        impulse = np.zeros((count, 39, 39, 1), np.float32)
        impulse[:, 19, 19] = 1
        blurred = np.asarray(random_gaussian_blur(jax.random.key(0), impulse))
        # The middle of a blurred impulse is its middle tap squared, which falls with sigma.
        grid = np.linspace(low - 0.1, high + 0.1, 1000)
        middle = [gaussian_taps(s, 19)[9] ** 2 for s in grid]
        sigma = np.interp(blurred[:, 19, 19, 0], middle[::-1], grid[::-1])
        assert low - 1e-3 <= sigma.min() < sigma.max() <= high + 1e-3
        assert scipy.stats.kstest(sigma, scipy.stats.uniform(low, high - low).cdf).pvalue > 0.01

    def test_a_range_of_one_sigma_is_gaussian_blur(self):
        result = random_gaussian_blur(jax.random.key(0), SMALL, sigma_range=(1.3, 1.3))
        np.testing.assert_allclose(result, gaussian_blur(SMALL, 1.3), atol=1e-6)

    def test_an_images_draw_depends_on_its_place_alone(self):
        key, image = jax.random.key(5), np.resize(SMALL, (6, *SMALL.shape[1:]))
        whole = short_random_blur(key, image)
        np.testing.assert_allclose(short_random_blur(key, image[:2]), whole[:2], atol=1e-6)
        folded = short_random_blur(one_key_each(key, 6)[4:], image[4:])
        np.testing.assert_allclose(folded, whole[4:], atol=1e-6)
        pairs = short_random_blur(key, image.reshape(2, 3, *image.shape[1:]))
        np.testing.assert_allclose(pairs.reshape(image.shape), whole, atol=1e-6)

    def test_eager_jit_and_vmap_agree(self):
        keys = one_key_each(jax.random.key(2), 3)
        eager = random_gaussian_blur(keys, SMALL)
        np.testing.assert_allclose(jax.jit(random_gaussian_blur)(keys, SMALL), eager, atol=1e-6)
        np.testing.assert_allclose(jax.vmap(random_gaussian_blur)(keys, SMALL), eager, atol=1e-6)

    @pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
    def test_blurs_as_often_as_asked_and_leaves_the_rest_exactly(self, probability):
        image = np.broadcast_to(SMALL[0, :12, :12], (400, 12, 12, 3))
        result = random_gaussian_blur(jax.random.key(1), image, probability=probability)
        blurred = (np.asarray(result) != image).any((1, 2, 3))
        assert abs(blurred.mean() - probability) < (0.07 if 0 < probability < 1 else 1e-9)

    def test_keeps_bfloat16_and_has_finite_gradients(self):
        image = jnp.asarray(SMALL, jnp.bfloat16)
        assert random_gaussian_blur(jax.random.key(0), image).dtype == jnp.bfloat16
        gradient = jax.grad(
            lambda x: short_random_blur(jax.random.key(0), x, probability=0.5).sum()
        )(jnp.asarray(SMALL))
        assert jnp.isfinite(gradient).all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"sigma_range": (2.0, 1.0)}, "sigma_range must be within"),
            ({"sigma_range": (-1.0, 1.0)}, "sigma_range must be within"),
            ({"probability": 1.5}, "probability must be within 0 and 1"),
            ({"kernel_size": 4}, "kernel_size must be an odd"),
        ],
    )
    def test_refuses_bad_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            random_gaussian_blur(jax.random.key(0), SMALL, **options)


class TestRegionBlur:
    def test_blurs_a_share_of_each_image_within_the_range(self):
        image = np.resize(SMALL, (64, *SMALL.shape[1:]))
        _, sigma = region_blur(jax.random.key(0), image, return_map=True)
        assert sigma.shape == image.shape[:-1]
        area = np.mean(np.asarray(sigma) > 0, axis=(1, 2))
        pixel = 1 / sigma[0].size
        assert 0.3 - 2 * pixel <= area.min() < 0.4
        assert 0.6 < area.max() <= 0.7 + 2 * pixel
        strongest = np.max(sigma, axis=(1, 2))
        assert 2 <= strongest.min() < 2.5
        assert 3.5 < strongest.max() <= 4

    @pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
    def test_hits_a_given_area_to_the_pixel(self, share):
        _, sigma = region_blur(
            jax.random.key(1), PHOTOS, area_range=(share, share), return_map=True
        )
        blurred = np.sum(np.asarray(sigma) > 0, axis=(1, 2))
        tolerance = 2 if 0 < share < 1 else 0
        np.testing.assert_allclose(blurred, share * 128 * 128, atol=tolerance)

    def test_the_map_is_the_truth(self):
        result, sigma = region_blur(jax.random.key(2), PHOTOS, return_map=True)
        inside = np.asarray(sigma) > 0
        strength = np.max(sigma, axis=(1, 2))
        np.testing.assert_array_equal(np.asarray(result)[~inside], PHOTOS[~inside])
        expected = np.asarray(gaussian_blur(PHOTOS, strength))
        np.testing.assert_allclose(np.asarray(result)[inside], expected[inside], atol=1e-6)
        assert (np.asarray(sigma)[inside] == np.repeat(strength, inside.sum((1, 2)))).all()

    def test_regions_are_a_few_smooth_shapes(self):
        _, sigma = region_blur(jax.random.key(3), PHOTOS, return_map=True)
        for inside in np.asarray(sigma) > 0:
            assert scipy.ndimage.label(inside)[1] <= 10
            # Rubbing off what a 5 x 5 disc can't reach changes little of a smooth shape.
            opened = scipy.ndimage.binary_opening(inside, np.ones((5, 5)))
            assert (inside != opened).mean() < 0.01

    def test_an_images_draw_depends_on_its_key_alone(self):
        key = jax.random.key(4)
        whole = short_region_blur(key, SMALL, return_map=True)
        keyed = short_region_blur(one_key_each(key, 3)[1:], SMALL[1:], return_map=True)
        for one, other in zip(whole, keyed, strict=True):
            np.testing.assert_allclose(other, one[1:], atol=1e-6)
        assert not (whole[1][0] == whole[1][1]).all()

    def test_eager_jit_vmap_and_shard_map_agree(self):
        count = 2 * jax.device_count()
        image = np.resize(SMALL, (count, *SMALL.shape[1:]))
        keys = one_key_each(jax.random.key(2), count)
        eager = short_region_blur(keys, image)
        for transform in (jax.jit, jax.vmap, over_all_devices):
            result = transform(short_region_blur)(keys, image)
            np.testing.assert_allclose(result, eager, atol=1e-6)

    def test_keeps_bfloat16_and_has_finite_gradients(self):
        image = jnp.asarray(SMALL, jnp.bfloat16)
        result, sigma = short_region_blur(jax.random.key(0), image, return_map=True)
        assert (result.dtype, sigma.dtype) == (jnp.bfloat16, jnp.float32)
        gradient = jax.grad(lambda x: short_region_blur(jax.random.key(0), x).sum())(
            jnp.asarray(SMALL)
        )
        assert jnp.isfinite(gradient).all()

    def test_a_probability_leaves_some_images_exactly_and_blurs_the_others_as_before(self):
        image = np.resize(SMALL, (40, *SMALL.shape[1:]))
        always, sigma = short_region_blur(jax.random.key(0), image, return_map=True)
        some = short_region_blur(jax.random.key(0), image, probability=0.5)
        blurred = (np.asarray(some) != image).any((1, 2, 3))
        assert 8 < blurred.sum() < 32
        np.testing.assert_allclose(some[blurred], always[blurred], atol=1e-6)

    @pytest.mark.parametrize("area", [(0.5, 1.1), (0.7, 0.3), (-0.1, 0.5)])
    def test_refuses_areas_that_are_no_shares(self, area):
        with pytest.raises(ValueError, match="area_range must be within 0 and 1"):
            region_blur(jax.random.key(0), SMALL, area_range=area)
