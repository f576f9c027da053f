"""ImageNet-C's blurs as people run them today: one image at a time, with NumPy, SciPy and OpenCV.

Written after the published definitions (Hendrycks and Dietterich 2019, section 3 and the
parameters of their code), as what `bvit.image.corruptions` is timed beside. The motion blur, which
is ImageMagick's in the original, is a sum of shifted images. Images are float [h, w, 3] in
[0, 1].
"""

import math
from collections.abc import Callable

import numpy as np

Picture = np.ndarray


def _gaussian(picture: Picture, sigma: float) -> Picture:
    import skimage.filters

    return skimage.filters.gaussian(picture, sigma, channel_axis=-1)


def _defocus(picture: Picture, radius: int, smooth: float) -> Picture:
    import cv2

    half, taps = (8, 3) if radius <= 8 else (radius, 5)
    place = np.arange(-half, half + 1)
    disk = (place[:, None] ** 2 + place**2 <= radius**2).astype(np.float32)
    disk = cv2.GaussianBlur(disk / disk.sum(), (taps, taps), smooth)
    return np.stack([cv2.filter2D(channel, -1, disk) for channel in np.moveaxis(picture, 2, 0)], 2)


def _glass(picture: Picture, sigma: float, reach: int, rounds: int) -> Picture:
    rng = np.random.default_rng(0)
    blurred = _gaussian(picture, sigma)
    height, width = picture.shape[:2]
    for _ in range(rounds):
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                right, down = rng.integers(-reach, reach, 2)
                blurred[row, column] = blurred[row + down, column + right]
    return _gaussian(blurred, sigma)


def _motion(picture: Picture, radius: int, sigma: float) -> Picture:
    angle = math.radians(np.random.default_rng(0).uniform(-45, 45))
    height, width = picture.shape[:2]
    weights = np.exp(-0.5 * (np.arange(2 * radius + 1) / sigma) ** 2)
    total = np.zeros_like(picture)
    for i, weight in enumerate(weights / weights.sum()):
        down, right = (math.ceil(i * f(angle) - 0.5) for f in (math.sin, math.cos))
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        total += np.float32(weight) * picture[rows[:, None], columns]
    return total


def _zoom(picture: Picture, end: float, step: float) -> Picture:
    import scipy.ndimage

    side, total = len(picture), picture.copy()
    factors = np.arange(1, end, step)
    for factor in factors:
        cut = math.ceil(side / factor)
        first = (side - cut) // 2
        middle = picture[first : first + cut, first : first + cut]
        large = scipy.ndimage.zoom(middle, (factor, factor, 1), order=1)
        first = (len(large) - side) // 2
        total += large[first : first + side, first : first + side]
    return total / (len(factors) + 1)


# The parameters of severity 3, the middle one.
SEVERITY = 3
BLURS: dict[str, tuple[Callable[..., Picture], tuple]] = {
    "gaussian_blur": (_gaussian, (3,)),
    "defocus_blur": (_defocus, (6, 0.5)),
    "glass_blur": (_glass, (1, 2, 3)),
    "motion_blur": (_motion, (15, 8)),
    "zoom_blur": (_zoom, (1.21, 0.02)),
}
# Those that draw nothing, so that the same pixels must come out.
EXACT = ("gaussian_blur", "defocus_blur", "zoom_blur")


def blur_all(name: str, pictures: np.ndarray) -> np.ndarray:
    """Applies a blur of severity 3 to images [n, h, w, 3], one after another."""
    function, parameters = BLURS[name]
    return np.stack([np.clip(function(picture, *parameters), 0, 1) for picture in pictures])
