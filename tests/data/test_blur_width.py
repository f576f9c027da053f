import cv2
import numpy as np
import pytest
import skimage.data

from bvit.data.blur_width import WINDOW, blur_width

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "coins", "camera")


def grey(name):
    pixels = getattr(skimage.data, name)()
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels


def moved(pixels, length, angle):
    """Blurred by a straight motion, in steps of a twentieth of a pixel."""
    side = 2 * (length // 2) + 9
    kernel, middle = np.zeros((side, side), np.float32), side // 2
    for place in np.linspace(-length / 2, length / 2, 20 * length):
        x, y = middle + place * np.cos(angle), middle + place * np.sin(angle)
        (column, across), (row, down) = (divmod(value, 1) for value in (x, y))
        for i, a in ((0, 1 - down), (1, down)):
            for j, b in ((0, 1 - across), (1, across)):
                kernel[int(row) + i, int(column) + j] += a * b
    return cv2.filter2D(pixels, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_gaussian_has_its_sigma_and_a_sharp_photograph_next_to_none(name):
    assert blur_width(grey(name)) < 1
    for sigma, error in ((2, 0.25), (4, 0.25), (8, 0.35)):
        found = blur_width(cv2.GaussianBlur(grey(name), (0, 0), sigma))
        assert found == pytest.approx(sigma, rel=error)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("angle", [0.0, 0.3, 0.8, 1.5, 2.3])
def test_a_motion_has_its_length_over_the_root_of_twelve(name, angle):
    found = blur_width(moved(grey(name), 30, angle))
    assert found == pytest.approx(30 / 12**0.5, rel=0.35)


def test_pixels_are_those_of_the_photograph_however_large_it_is():
    small = cv2.GaussianBlur(grey("astronaut"), (0, 0), 2)
    large = cv2.resize(small, None, fx=6, fy=6, interpolation=cv2.INTER_CUBIC)
    assert min(large.shape) > 5 * WINDOW
    assert blur_width(large) == pytest.approx(6 * blur_width(small), rel=0.25)


@pytest.mark.parametrize("noise", [2, 5])
def test_noise_is_no_sharpness(noise):
    rng = np.random.default_rng(0)
    for sigma in (2, 6):
        seen = cv2.GaussianBlur(grey("coffee"), (0, 0), sigma) + rng.normal(0, noise, (400, 600))
        found = blur_width(np.clip(np.rint(seen), 0, 255).astype(np.uint8))
        assert found == pytest.approx(sigma, rel=0.35)


@pytest.mark.parametrize("shape", [(1, 1), (3, 900), (31, 31), (0, 0)])
def test_what_is_too_small_or_flat_tells_nothing(shape):
    assert blur_width(np.full(shape, 7, np.uint8)) is None
    assert blur_width(np.full((300, 300), 7, np.uint8)) is None
    assert blur_width(np.random.default_rng(0).integers(100, 110, (300, 300)).astype(np.uint8)) in (
        None,
        0.0,
    )
