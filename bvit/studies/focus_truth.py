"""Photographs of which it is known where they are in focus, and what cameras do to them.

Three kinds: pairs of one scene focused near and far, photographs with a hand-drawn map, and sharp
photographs beside the same ones blurred on purpose.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float

from bvit.data.decode import Pixels, decode
from bvit.data.listing import list_images
from bvit.image.pixels import LUMA

PATCH = 16
# Of two photographs of a patch, the one with more gradient energy is sharp. It is clear where it
# has at least half as much again, and where either photograph has a contrast (standard deviation)
# of four grey levels.
CLEAR_RATIO, CLEAR_CONTRAST = 1.5, 4.0
# The gradient is taken of an image smoothed a little, in pixels, or it would be noise.
TRUTH_SMOOTHING = 0.7
# A patch of a hand-drawn map counts where at least this share of it is drawn alike.
ALIKE = 0.9
# Grey levels of the noise, and qualities of JPEG, that cameras are taken to add.
NOISE, NOISY_QUALITY, LOW_QUALITY = 5.0, 75, 60
LARGEST_KERNEL = 65
# Of photographs blurred on purpose the middle is taken: few shapes have to be compiled.
MIDDLE, SMALL_MIDDLE = 320, 224

Grid = Float[np.ndarray, "rows columns"]
Change = Callable[[np.random.Generator, Pixels], Pixels]


class Truth(NamedTuple):
    """A photograph, and what is known of its patches.

    Attributes:
      kind: "pair", "mask" or "blurred".
      scene: images of the same scene are never split over training and testing.
      scale: by which it was resized.
      pixels: uint8 RGB, sides divisible by `PATCH`.
      sharp: of each patch whether it is in focus.
      clear: of which patches that is known.
      mask: of each pixel whether it is sharp, where it was drawn by hand.
    """

    kind: str
    scene: str
    scale: float
    pixels: Pixels
    sharp: Bool[np.ndarray, "rows columns"]
    clear: Bool[np.ndarray, "rows columns"]
    mask: Bool[np.ndarray, "h w"] | None = None


def read(path: Path) -> Pixels:
    """A photograph without the last rows and columns that fill no patch."""
    pixels = decode(path.read_bytes())
    return whole_patches(pixels)


def whole_patches(x: np.ndarray) -> np.ndarray:
    """Cuts off the last rows and columns that fill no patch."""
    height, width = (side // PATCH * PATCH for side in x.shape[:2])
    return np.ascontiguousarray(x[:height, :width])


def focus_pairs(
    folder: Path,
    *,
    scale: float = 1.0,
    ratio: float = CLEAR_RATIO,
    contrast: float = CLEAR_CONTRAST,
) -> list[Truth]:
    """Pairs NAME_A and NAME_B of one scene focused near and far, such as the Lytro set.

    Nejati et al. 2015, "Multi-focus image fusion using dictionary-based sparse representation".

    Args:
      folder: with the photographs.
      scale: by which they are resized first.
      ratio: of gradient energies from which a patch is clear.
      contrast: standard deviation in grey levels that either must have.

    Raises:
      ValueError: no pair in the folder.
    """
    firsts = sorted(path for path in folder.iterdir() if path.stem.endswith("_A"))
    found = []
    for first in firsts:
        second = first.with_name(f"{first.stem[:-1]}B{first.suffix}")
        near, far = (whole_patches(_resized(read(path), scale)) for path in (first, second))
        found += compared("pair", first.stem[:-2], near, far, scale, ratio, contrast)
    if not found:
        raise ValueError(
            f"{folder} holds no focus pairs: it needs files NAME_A.jpg and NAME_B.jpg."
        )
    return found


def compared(
    kind: str,
    scene: str,
    first: Pixels,
    second: Pixels,
    scale: float = 1.0,
    ratio: float = CLEAR_RATIO,
    contrast: float = CLEAR_CONTRAST,
) -> tuple[Truth, Truth]:
    """Two photographs of the same: each patch is sharp in the one with more gradient energy."""
    more = gradient_energy(first) / gradient_energy(second)
    enough = np.maximum(*(patch_values(_grey(x)).std(-1) for x in (first, second))) >= contrast
    clear = ((more > ratio) | (more < 1 / ratio)) & enough
    return (
        Truth(kind, scene, scale, first, more > 1, clear),
        Truth(kind, scene, scale, second, more < 1, clear),
    )


def blur_masks(folder: Path) -> list[Truth]:
    """Photographs NAME.jpg with what is sharp in them, NAME_sharp.png, white.

    Raises:
      ValueError: no such file in the folder.
    """
    found = []
    for drawn in sorted(folder.glob("*_sharp.png")):
        path = drawn.with_name(f"{drawn.stem.removesuffix('_sharp')}.jpg")
        pixels = read(path)
        mask = whole_patches(cv2.imdecode(np.frombuffer(drawn.read_bytes(), np.uint8), 0)) > 127
        share = patch_values(mask).mean(-1)
        enough = patch_values(_grey(pixels)).std(-1) >= CLEAR_CONTRAST
        clear = ((share >= ALIKE) | (share <= 1 - ALIKE)) & enough
        found.append(Truth("mask", path.stem, 1.0, pixels, share > 0.5, clear, mask))
    if not found:
        raise ValueError(f"{folder} holds no maps: it needs files NAME.jpg and NAME_sharp.png.")
    return found


def blurred_on_purpose(names: Sequence[str], count: int, rng: np.random.Generator) -> list[Truth]:
    """Photographs beside themselves, blurred by a Gaussian, a disk or motion of a random size.

    Args:
      names: files, folders, patterns.
      count: at most so many of them, evenly spaced.
      rng: of the blurs.
    """
    files, failures = list_images(names, [])
    if failures:
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in failures.items()))
    found = []
    for path in files[:: max(1, len(files) // count)][:count]:
        pixels = middle(read(path))
        for kernel in (_gaussian(rng), _disk(rng), _motion(rng)):
            blurred = cv2.filter2D(pixels, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
            found += compared("blurred", path.name, pixels, blurred)
    return found


def middle(pixels: Pixels) -> Pixels:
    """The middle `MIDDLE` pixels of a photograph, or `SMALL_MIDDLE` of a small one."""
    side = MIDDLE if min(pixels.shape[:2]) >= MIDDLE else SMALL_MIDDLE
    top, left = (max(0, length - side) // 2 for length in pixels.shape[:2])
    return whole_patches(pixels[top : top + side, left : left + side])


def noisy(rng: np.random.Generator, pixels: Pixels, deviation: float = NOISE) -> Pixels:
    """Gaussian noise, rounded to 8 bits."""
    noise = deviation * rng.standard_normal(pixels.shape, np.float32)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def compressed(pixels: Pixels, quality: int) -> Pixels:
    """Through JPEG and back."""
    _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return decode(data.tobytes())


CHANGES: dict[str, Change] = {
    "as it is": lambda rng, pixels: pixels,
    "noise 5": lambda rng, pixels: noisy(rng, pixels),
    "JPEG 60": lambda rng, pixels: compressed(pixels, LOW_QUALITY),
    "noise 5, JPEG 75": lambda rng, pixels: compressed(noisy(rng, pixels), NOISY_QUALITY),
}


def gradient_energy(pixels: Pixels) -> Grid:
    """Mean squared gradient of each patch, of the slightly smoothed image; never 0."""
    grey = cv2.GaussianBlur(_grey(pixels), (0, 0), TRUTH_SMOOTHING)
    squares = sum(np.square(cv2.Sobel(grey, cv2.CV_64F, *order) / 8) for order in ((1, 0), (0, 1)))
    return patch_values(squares).mean(-1) + 1e-6


def patch_values(x: np.ndarray) -> np.ndarray:
    """The values of each patch, [rows, columns, PATCH²]."""
    rows, columns = (side // PATCH for side in x.shape)
    x = x.reshape(rows, PATCH, columns, PATCH).swapaxes(1, 2)
    return x.reshape(rows, columns, PATCH**2)


def _grey(pixels):
    return pixels.astype(np.float64) @ np.array(LUMA)


def _resized(pixels, scale):
    if scale == 1:
        return pixels
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=way)


def _log_uniform(rng, low, high):
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _gaussian(rng):
    taps = cv2.getGaussianKernel(LARGEST_KERNEL, _log_uniform(rng, 0.8, 5.0))
    return taps @ taps.T


def _disk(rng):
    place = np.arange(LARGEST_KERNEL) - LARGEST_KERNEL // 2
    kernel = np.clip(_log_uniform(rng, 1.2, 8.0) + 0.5 - np.hypot(*np.meshgrid(place, place)), 0, 1)
    return kernel / kernel.sum()


def _motion(rng):
    return motion_kernel(_log_uniform(rng, 4.0, 25.0), rng.uniform(0, 180))


def motion_kernel(length: float, angle: float) -> Float[np.ndarray, "k k"]:
    """Even motion along a line, each of its points spread over the four pixels around it.

    Args:
      length: in pixels.
      angle: in degrees, counterclockwise from the horizontal.
    """
    kernel = np.zeros((LARGEST_KERNEL, LARGEST_KERNEL))
    along = np.linspace(-length / 2, length / 2, 16 * LARGEST_KERNEL)
    right = LARGEST_KERNEL // 2 + along * np.cos(np.radians(angle))
    down = LARGEST_KERNEL // 2 - along * np.sin(np.radians(angle))
    for row in (0, 1):
        for column in (0, 1):
            i, j = np.floor(down).astype(int) + row, np.floor(right).astype(int) + column
            np.add.at(kernel, (i, j), (1 - abs(down - i)) * (1 - abs(right - j)))
    return kernel / kernel.sum()
