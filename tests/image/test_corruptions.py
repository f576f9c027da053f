"""ImageNet-C's blurs against OpenCV, SciPy, scikit-image and loops, with the published numbers."""

import math
from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import skimage.data
import skimage.filters

from bvit.image.corruptions import NAMES, corrupt, corruption_error
from bvit.image.glass import move_pixels

PHOTO = skimage.data.astronaut()[80:120, 200:240].astype(np.float32) / 255
KEY = jax.random.key(7)
PUBLISHED = {
    "defocus_blur": [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    "glass_blur": [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    "motion_blur": [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    "zoom_blur": [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
    "gaussian_blur": [(1,), (2,), (3,), (4,), (6,)],
}


def gaussian(image, sigma):
    return skimage.filters.gaussian(image.astype(np.float64), sigma, channel_axis=-1)


def defocus(image, radius, alias):
    size = max(radius, 8)
    y, x = np.mgrid[-size : size + 1, -size : size + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float32)
    disk = cv2.GaussianBlur(disk / disk.sum(), (3, 3) if size == 8 else (5, 5), alias)
    return cv2.filter2D(image, -1, disk)


def glass(image, sigma, max_shift, rounds):
    move = jax.jit(partial(move_pixels, max_shift=max_shift, rounds=rounds))
    return gaussian(np.asarray(move(KEY, gaussian(image, sigma))), sigma)


def motion(image, radius, sigma):
    angle = math.radians(float(jax.random.uniform(KEY, (), jnp.float32, -45, 45)))
    width, (height, length) = 2 * radius + 1, image.shape[:2]
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    result = np.zeros(image.shape)
    for i, weight in enumerate(weights / weights.sum()):
        down, right = (math.ceil(i * f(angle) - 0.5) for f in (math.sin, math.cos))
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        result += weight * image[rows][:, np.clip(np.arange(length) + right, 0, length - 1)]
    return result


def zoom(image, end, step):
    factors, side = np.arange(1, end, step), len(image)
    total = image.astype(np.float64)
    for factor in factors:
        cut = math.ceil(side / factor)
        top = (side - cut) // 2
        middle = image[top : top + cut, top : top + cut].astype(np.float64)
        large = scipy.ndimage.zoom(middle, (factor, factor, 1), order=1)
        trim = (len(large) - side) // 2
        total = total + large[trim : trim + side, trim : trim + side]
    return total / (len(factors) + 1)


ORACLES = dict(zip(PUBLISHED, [defocus, glass, motion, zoom, gaussian], strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("severity", [2, 5])
def test_is_the_published_blur(name, severity):
    expected = ORACLES[name](PHOTO, *PUBLISHED[name][severity - 1])
    result = corrupt(KEY, PHOTO, name=name, severity=severity)
    np.testing.assert_allclose(result, np.clip(expected, 0, 1), atol=2e-5)
    assert np.abs(result - PHOTO).max() > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_batches_bfloat16_constants_and_gradients(name):
    def blur(key, image):
        return corrupt(key, image, name=name, severity=1)

    image = np.stack([PHOTO, PHOTO.transpose(1, 0, 2)])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(2))
    whole = blur(KEY, image)
    np.testing.assert_allclose(blur(keys, image), whole, atol=1e-6)
    np.testing.assert_allclose(blur(KEY, np.full_like(image, 0.4)), 0.4, atol=1e-6)
    assert jax.eval_shape(blur, KEY, jnp.asarray(image, jnp.bfloat16)).dtype == jnp.bfloat16
    gradient = jax.jit(jax.grad(lambda x: blur(KEY, x).sum()))
    assert jnp.isfinite(gradient(jnp.asarray(image))).all()


def test_under_vmap_and_jit():
    blur = partial(corrupt, name="motion_blur", severity=1)
    keys, image = jax.random.split(KEY, 2), np.stack([PHOTO, PHOTO[::-1]])
    vmapped = jax.jit(jax.vmap(blur))(keys, image)
    np.testing.assert_allclose(vmapped, blur(keys, image), atol=1e-6)


def test_the_corruption_error_is_relative_to_alexnets():
    assert corruption_error("zoom_blur", [0.79836] * 5) == pytest.approx(1)
    assert corruption_error("defocus_blur", [0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(
        0.3 / 0.81988
    )
    with pytest.raises(ValueError, match="published for defocus_blur"):
        corruption_error("gaussian_blur", [0.5] * 5)
    with pytest.raises(ValueError, match="5 severities: got 2"):
        corruption_error("zoom_blur", [0.5] * 2)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (PHOTO, {"name": "fog", "severity": 1}, "name must be one of defocus_blur"),
        (PHOTO, {"name": "zoom_blur", "severity": 0}, "severity must be 1, 2, 3, 4 or 5"),
        (PHOTO[:8, :8], {"name": "defocus_blur", "severity": 1}, "kernel_size=17"),
        (PHOTO[..., 0], {"name": "zoom_blur", "severity": 1}, "batch, height"),
    ],
)
def test_refuses(image, options, message):
    with pytest.raises(ValueError, match=message):
        corrupt(KEY, image, **options)
