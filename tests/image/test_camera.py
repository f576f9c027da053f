"""The camera's blurs against OpenCV's filters, with kernels that are tested on their own."""

from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from bvit.image.camera import (
    anisotropic_gaussian_blur,
    box_blur,
    defocus_blur,
    motion_blur,
    random_anisotropic_gaussian_blur,
    random_box_blur,
    random_defocus_blur,
    random_motion_blur,
    random_shake_blur,
)
from bvit.image.kernels import disk_kernel, gaussian_kernel, motion_kernel

SIZE = 11
PHOTOS = np.stack(
    [
        photo[80:112, 200:228].astype(np.float32) / 255
        for photo in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())
    ]
)
STRENGTHS = np.array([1.3, 3.0, 5.0], np.float32)
ANGLES = np.array([0.0, 30.0, -75.0], np.float32)

# Blurs with a strength and an angle for each image.
BLURS = {
    "motion": lambda x, s, a: motion_blur(x, s, a, bend=60, kernel_size=SIZE),
    "defocus": lambda x, s, a: defocus_blur(x, s, kernel_size=SIZE),
    "box": lambda x, s, a: box_blur(x, s, kernel_size=SIZE),
    "anisotropic": lambda x, s, a: anisotropic_gaussian_blur(x, s, s / 3, a, kernel_size=SIZE),
}
RANDOM_BLURS = {
    "motion": partial(random_motion_blur, length_range=(3.0, 9.0), kernel_size=SIZE),
    "shake": partial(random_shake_blur, length_range=(3.0, 9.0), kernel_size=SIZE),
    "defocus": partial(random_defocus_blur, radius_range=(2.0, 5.0), kernel_size=SIZE),
    "box": partial(random_box_blur, kernel_size=SIZE),
    "anisotropic": partial(random_anisotropic_gaussian_blur, kernel_size=SIZE),
}


def box_kernel(width):
    covered = np.clip(width / 2 + 0.5 - np.abs(np.arange(SIZE) - SIZE // 2), 0, 1)
    return np.outer(covered, covered) / covered.sum() ** 2


KERNELS = {
    "motion": jax.jit(lambda s, a: motion_kernel(s, a, 60, kernel_size=SIZE)),
    "defocus": lambda s, a: disk_kernel(s, kernel_size=SIZE),
    "box": lambda s, a: box_kernel(s),
    "anisotropic": jax.jit(lambda s, a: gaussian_kernel(s, s / 3, a, kernel_size=SIZE)),
}


def filtered(image, kernel):
    flipped = np.ascontiguousarray(np.asarray(kernel)[::-1, ::-1], np.float64)
    return cv2.filter2D(image.astype(np.float64), -1, flipped, borderType=cv2.BORDER_REFLECT_101)


@pytest.mark.parametrize("name", BLURS)
class TestBlurs:
    def test_is_opencvs_filter_with_parameters_for_each_image(self, name):
        expected = [
            filtered(x, KERNELS[name](s, a))
            for x, s, a in zip(PHOTOS, STRENGTHS, ANGLES, strict=True)
        ]
        result = BLURS[name](PHOTOS, STRENGTHS, ANGLES)
        np.testing.assert_allclose(result, expected, atol=1e-5)
        assert np.abs(result - PHOTOS).max(axis=(1, 2, 3)).min() > 0.01

    def test_eager_jit_and_vmap_agree(self, name):
        eager = BLURS[name](PHOTOS, STRENGTHS, ANGLES)
        for transform in (jax.jit, jax.vmap):
            result = transform(BLURS[name])(PHOTOS, STRENGTHS, ANGLES)
            np.testing.assert_allclose(result, eager, atol=1e-6)

    def test_zero_strength_changes_no_bit_and_constants_stay(self, name):
        zero = np.array([0.0, 3.0, 0.0], np.float32)
        result = np.asarray(BLURS[name](PHOTOS, zero, ANGLES))
        np.testing.assert_array_equal(result[::2], PHOTOS[::2])
        grey = np.full_like(PHOTOS, 0.37)
        np.testing.assert_allclose(BLURS[name](grey, STRENGTHS, ANGLES), grey, atol=1e-6)

    def test_keeps_bfloat16_and_has_finite_gradients(self, name):
        image = jnp.asarray(PHOTOS, jnp.bfloat16)
        assert jax.eval_shape(BLURS[name], image, STRENGTHS, ANGLES).dtype == jnp.bfloat16

        def energy(x, strength):
            return (BLURS[name](x, strength, ANGLES) ** 2).sum()

        strength = jnp.array([0.0, 1e-6, 4.3])
        gradient = jax.jit(jax.grad(energy, (0, 1)))
        by_image, by_strength = gradient(jnp.asarray(PHOTOS), strength)
        assert jnp.isfinite(by_image).all()
        assert jnp.isfinite(by_strength).all()
        assert by_strength[2] < 0

    @pytest.mark.parametrize(
        ("strength", "message"),
        [
            (-1.0, "must be >= 0"),
            (np.nan, "must be >= 0"),
            (np.ones(2), "one number, or one for each image"),
        ],
    )
    def test_refuses_strengths(self, name, strength, message):
        with pytest.raises(ValueError, match=message):
            BLURS[name](PHOTOS, strength, 0.0)


def test_odd_boxes_are_opencvs():
    for width in (3, 7):
        expected = [cv2.blur(x, (width, width), borderType=cv2.BORDER_REFLECT_101) for x in PHOTOS]
        np.testing.assert_allclose(box_blur(PHOTOS, width, kernel_size=SIZE), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: motion_blur(PHOTOS, 11.0, kernel_size=SIZE), "length must be at most 10"),
        (lambda: motion_blur(PHOTOS, 1.0, np.zeros(2)), "angle must be one number"),
        (lambda: motion_blur(PHOTOS, 1.0, bend=np.zeros(2)), "bend must be one number"),
        (lambda: motion_blur(PHOTOS, 1.0, kernel_size=61), "use at most 55"),
        (lambda: defocus_blur(PHOTOS, 6.0, kernel_size=SIZE), "radius must be at most 5"),
        (lambda: defocus_blur((PHOTOS * 255).astype(np.uint8), 1.0), "got uint8"),
        (lambda: box_blur(PHOTOS, 12, kernel_size=SIZE), "width must be at most 11"),
        (lambda: box_blur(PHOTOS, 2, kernel_size=4), "odd integer"),
        (lambda: anisotropic_gaussian_blur(PHOTOS, 1.0, -1.0), "sigma_across must be >= 0"),
    ],
)
def test_refuses_before_anything_compiles(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", RANDOM_BLURS)
class TestRandomForms:
    def test_an_images_draw_depends_on_its_key_alone(self, name):
        key = jax.random.key(5)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(3))
        whole = RANDOM_BLURS[name](key, PHOTOS)
        assert np.abs(whole - PHOTOS).max(axis=(1, 2, 3)).min() > 0.01
        keyed = RANDOM_BLURS[name](keys, PHOTOS)
        np.testing.assert_allclose(keyed, whole, atol=1e-6)
        same = np.asarray(RANDOM_BLURS[name](key, PHOTOS[[0, 0, 0]]))
        assert np.abs(same[0] - same[1]).max() > 1e-3

    def test_probability_zero_changes_no_bit(self, name):
        result = RANDOM_BLURS[name](jax.random.key(1), PHOTOS, probability=0.0)
        np.testing.assert_array_equal(result, PHOTOS)

    def test_refuses_bad_options(self, name):
        strength = {
            "motion": "length_range",
            "shake": "length_range",
            "defocus": "radius_range",
            "box": "width_range",
            "anisotropic": "sigma_along_range",
        }[name]
        for bounds in ((2.0, 1.0), (-1.0, 1.0)):
            with pytest.raises(ValueError, match=f"{strength} must be within"):
                RANDOM_BLURS[name](jax.random.key(0), PHOTOS, **{strength: bounds})
        with pytest.raises(ValueError, match="probability must be within"):
            RANDOM_BLURS[name](jax.random.key(0), PHOTOS, probability=1.5)


def test_random_forms_under_vmap_and_jit():
    keys = jax.random.split(jax.random.key(6), 3)
    eager = RANDOM_BLURS["shake"](keys, PHOTOS)
    vmapped = jax.jit(jax.vmap(RANDOM_BLURS["shake"]))(keys, PHOTOS)
    np.testing.assert_allclose(vmapped, eager, atol=1e-6)


def test_blurs_as_often_as_asked():
    image = np.broadcast_to(PHOTOS[0, :12, :12], (400, 12, 12, 3))
    result = RANDOM_BLURS["box"](jax.random.key(1), image, probability=0.3)
    changed = (np.asarray(result) != image).any((1, 2, 3)).mean()
    assert abs(changed - 0.3) < 0.07


def test_random_parameters_fill_their_range():
    point = np.zeros((200, 13, 13, 1), np.float32)
    point[:, 6, 6] = 1
    blur = partial(random_defocus_blur, radius_range=(2.0, 4.0), kernel_size=SIZE)
    peak = np.asarray(blur(jax.random.key(0), point))[:, 6, 6, 0]
    low, high = (float(disk_kernel(r, kernel_size=SIZE).max()) for r in (4.0, 2.0))
    assert low - 1e-5 <= peak.min() < 1.05 * low
    assert 0.95 * high < peak.max() <= high + 1e-5
