"""How far the blur of a photograph reaches, in pixels of its file: measured on the host.

`bvit.image.sigma` estimates the blur of pixels as a network sees them, on the device. Here the size
of a photograph may be any, so nothing is compiled, and its blur may be wide, so it is measured at
several resolutions.
"""

import functools

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from bvit.image.sigma import NOISE_BLOCK, REBLUR_RADIUS, REBLURS, SHARP

# At each resolution the middle of the photograph is measured, up to this side in pixels. So time
# and memory do not grow with the photograph.
WINDOW = 512
# Below this side there is too little to measure. The resolution is halved as long as there is more.
LEAST_SIDE = 48
SMALLEST = 2 * NOISE_BLOCK
# A wide blur leaves so little detail at the full resolution that its estimate is too small; at half
# of it, one from here on counts, in pixels there. Smaller ones are mostly of the halving.
LEAST_COUNTED = 1.0
# Along a line, the gradient energy of a photograph blurred by sigma is taken to be
# (SHARP² + sigma²)^-DECAY: an edge across the line would have 1/2. Fitted to six of scikit-image's
# photographs, blurred by Gaussians of 1 to 8 px and by motions of 10 and 30 px: off by
# up to 30 %.
DECAY = 0.6
# Estimates at one resolution end here, as in `bvit.image.sigma`.
MAX_SIGMA = 10.0
# Degrees of the lines; those at right angles to them are measured too.
ANGLES = (0.0, 45.0)
# Of an image's energy along a line, so much must be more than its noise for the line to count.
LEAST_SIGNAL = 0.2
# Energy of rounding to 8 bits, in grey levels of 255; below it there is no detail.
LEAST_ENERGY = 0.05
NOISE_QUANTILE = 0.25


def blur_width(grey: UInt8[np.ndarray, "_height _width"]) -> float | None:
    """How far the blur of a photograph spreads light, in the direction of the most.

    It is the standard deviation of the blur along that direction: the sigma of a Gaussian, or the
    length of a straight motion divided by √12. Blurring a photograph again along a line lowers its
    gradients much where it was sharp along that line, and hardly where it was blurred (Zhuo and Sim
    2011, "Defocus map estimation from a single image", eq. 4).

    Args:
      grey: the photograph at its full resolution.

    Returns:
      The width in pixels, 0 where the photograph is sharp; None if it is flat or too small.
    """
    widest, scale = None, 1
    while min(grey.shape) >= SMALLEST * scale:
        found = _widest(_middle(grey, scale))
        if found is not None and (scale == 1 or found >= LEAST_COUNTED):
            widest = max(widest or 0.0, scale * found)
        scale *= 2
        if min(grey.shape) < LEAST_SIDE * scale:
            break
    return widest


def _middle(grey: np.ndarray, scale: int) -> Float[np.ndarray, "h w"]:
    """The middle of a photograph at a part of its resolution, in grey levels of 255."""
    rows, columns = (min(side // scale, WINDOW) for side in grey.shape)
    top, left = (
        (side - n * scale) // 2 for side, n in zip(grey.shape, (rows, columns), strict=True)
    )
    part = grey[top : top + rows * scale, left : left + columns * scale]
    if scale > 1:
        part = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)
    return part.astype(np.float32)


def _widest(grey: np.ndarray) -> float | None:
    """The widest blur of an image along four lines; None if it is flat."""
    noise = _noise_variance(grey)
    turned = [_turned(grey, angle) if angle else grey for angle in ANGLES]
    along = [_along_both(image, noise) for image in turned if min(image.shape) > 2 * REBLUR_RADIUS]
    return max((width for pair in along for width in pair if width is not None), default=None)


def _along_both(grey: np.ndarray, noise: float) -> tuple[float | None, float | None]:
    """The blur of an image along its rows and along its columns."""
    near, far = map(_taps, REBLURS)
    both = _filtered(grey, near, near)
    rows, columns = (both, _filtered(grey, far, near)), (both, _filtered(grey, near, far))
    return (
        _width([_energy(x[:, 1:], x[:, :-1]) for x in rows], noise),
        _width([_energy(x[1:], x[:-1]) for x in columns], noise),
    )


def _energy(after: np.ndarray, before: np.ndarray) -> float:
    return cv2.norm(after, before, cv2.NORM_L2SQR) / after.size


def _width(energies: list[float], noise: float) -> float | None:
    """The blur along a line, by its gradients after each reblur; None where they are noise."""
    signals = []
    for energy, reblur in zip(energies, REBLURS, strict=True):
        expected = noise * _noise_energy(reblur)
        if energy - expected < LEAST_ENERGY + LEAST_SIGNAL * expected:
            return None
        signals.append(energy - expected)
    near, far = REBLURS
    excess = max(max(signals[0] / signals[1], 1.0) ** (1 / DECAY) - 1, 1e-6)
    squared = (far**2 - near**2) / excess - near**2 - SHARP**2
    return min(squared**0.5, MAX_SIGMA) if squared > 0 else 0.0


def _filtered(grey: np.ndarray, along: np.ndarray, across: np.ndarray) -> np.ndarray:
    return cv2.sepFilter2D(grey, cv2.CV_32F, along, across, borderType=cv2.BORDER_REFLECT_101)


def _turned(grey: np.ndarray, degrees: float) -> np.ndarray:
    """The largest square in the middle of an image, turned."""
    height, width = grey.shape
    side = int(min(height, width) / 2**0.5) - 2
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    matrix[:, 2] -= (width - side) / 2, (height - side) / 2
    return cv2.warpAffine(grey, matrix, (side, side), flags=cv2.INTER_CUBIC)


def _noise_variance(grey: np.ndarray) -> float:
    """As `bvit.image.focus_measures.noise_variance`: from the quietest quarter of the blocks."""
    height, width = (side // NOISE_BLOCK * NOISE_BLOCK for side in grey.shape)
    rows = grey[0:height:2, :width] - grey[1:height:2, :width]
    energy = np.square(rows[:, ::2] - rows[:, 1::2]) / 4
    blocks = width // NOISE_BLOCK, height // NOISE_BLOCK
    means = cv2.resize(energy, blocks, interpolation=cv2.INTER_AREA)
    return float(np.quantile(means, NOISE_QUANTILE))


@functools.cache
def _taps(sigma: float) -> np.ndarray:
    place = np.arange(-REBLUR_RADIUS, REBLUR_RADIUS + 1)
    taps = np.exp(-0.5 * (place / sigma) ** 2)
    return (taps / taps.sum()).astype(np.float32)


@functools.cache
def _noise_energy(reblur: float) -> float:
    """The gradient energy along a line that white noise of variance 1 has after the reblur."""
    along, across = (_taps(sigma).astype(np.float64) for sigma in (reblur, REBLURS[0]))
    return float(2 * (across @ across) * (along @ along - along[1:] @ along[:-1]))
