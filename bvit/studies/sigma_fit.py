"""Fits the estimate of sigma, and prints its errors, on photographs blurred by known amounts."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bvit.data.decode import Pixels
from bvit.data.listing import list_images
from bvit.image.sigma_map import (
    TOLERANCE,
    TOLERANCE_PIXELS,
    SigmaWeights,
    sigma_and_confidence,
)
from bvit.studies.focus_fit import FOLDS, RIDGE, measured, regression
from bvit.studies.focus_truth import compressed, noisy, read

# Photographs are halved, to be sharp to the pixel; of each, the middle is taken.
SIDE = 160
SIGMAS = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0)
# A screen's gamma: light adds up before it, as a lens blurs.
GAMMA = 2.2
# Cells with less structure than this variance in the sharp photograph, in squared grey levels, or
# with less gradient energy there, show no blur: they are left out.
LEAST_STRUCTURE, LEAST_GRADIENT = 50.0, 20.0


class Blurred(NamedTuple):
    """A photograph blurred by a known amount, and cells in which that can be seen.

    Attributes:
      scene: which photograph.
      sigma: in pixels.
      noise: of the noise added, in grey levels.
      quality: of JPEG; 0 where it was not compressed.
      found: the measures of its textured cells.
      structure: the variance of what there is to see in them.
    """

    scene: str
    sigma: float
    noise: float
    quality: int
    found: Float[np.ndarray, "measures n"]
    structure: Float[np.ndarray, " n"]


CAMERAS = ((0.0, 0), (2.0, 90), (5.0, 0), (0.0, 60), (5.0, 75))


def blurred_photographs(
    names: Sequence[str], count: int, rng: np.random.Generator
) -> list[Blurred]:
    """Blurs photographs in linear light by each of the sigmas, as seen by one camera each.

    Args:
      names: files, folders, patterns.
      count: at most so many of them, evenly spaced.
      rng: of the noise and of the cameras.
    """
    files, _ = list_images(names, [])
    blurred = []
    for path in files[:: max(1, len(files) // count)][:count]:
        pixels = _sharp(read(path))
        if pixels is None:
            continue
        found, structure, *_ = measured(pixels)
        textured = (structure > LEAST_STRUCTURE) & (found[2] > np.log(LEAST_GRADIENT))
        for sigma in SIGMAS:
            noise, quality = CAMERAS[rng.integers(len(CAMERAS))]
            seen = camera(rng, pixels, sigma, noise, quality)
            found, structure, *_ = measured(seen)
            one = Blurred(path.name, sigma, noise, quality, found[:, textured], structure[textured])
            blurred.append(one)
    return blurred


def camera(
    rng: np.random.Generator, pixels: Pixels, sigma: float, noise: float, quality: int
) -> Pixels:
    """Blurs in linear light; adds gamma, noise and JPEG (quality 0: none)."""
    light = (pixels.astype(np.float32) / 255) ** GAMMA
    light = cv2.GaussianBlur(light, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    pixels = np.rint(255 * np.clip(light, 0, 1) ** (1 / GAMMA)).astype(np.uint8)
    pixels = noisy(rng, pixels, noise) if noise else pixels
    return compressed(pixels, quality) if quality else pixels


def fit_sigma(examples: Sequence[Blurred]) -> SigmaWeights:
    """Fits the logarithm of sigma by least squares, then when that is right."""
    x = np.concatenate([one.found for one in examples], axis=1).T.astype(np.float64)
    truth = np.concatenate([np.full(one.found.shape[1], one.sigma) for one in examples])
    x = np.concatenate([x, x**2], axis=1)
    mean, spread = x.mean(0), x.std(0) + 1e-9
    standard = np.concatenate([(x - mean) / spread, np.ones((len(x), 1))], axis=1)
    ridge = np.diag(np.append(np.full(x.shape[1], RIDGE), 0.0))
    found = np.linalg.solve(standard.T @ standard + ridge, standard.T @ np.log(truth))
    right = is_right(np.exp(standard @ found), truth)
    sure = regression(standard[:, :-1], right.astype(float), np.ones(len(x)))
    return SigmaWeights(_unscaled(found, mean, spread), _unscaled(sure, mean, spread))


def is_right(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Whether estimates are within the tolerance."""
    return np.abs(found - truth) <= np.maximum(TOLERANCE * truth, TOLERANCE_PIXELS)


def left_out_sigma(
    examples: Sequence[Blurred], rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sigma and confidence of each example's cells, by weights that saw nothing of its scene."""
    scenes = sorted({one.scene for one in examples})
    fold = dict(zip(rng.permutation(scenes), np.arange(len(scenes)) % FOLDS, strict=True))
    fitted = [fit_sigma([x for x in examples if fold[x.scene] != k]) for k in range(FOLDS)]
    return [estimates(one, fitted[fold[one.scene]]) for one in examples]


def estimates(one: Blurred, weights: SigmaWeights) -> tuple[np.ndarray, np.ndarray]:
    """Sigma and confidence of each of an example's cells."""
    found = sigma_and_confidence(
        jnp.asarray(one.found)[..., None], jnp.asarray(one.structure)[:, None], weights
    )
    sigma, confidence = (np.asarray(x)[:, 0] for x in found)
    return sigma, confidence


def _sharp(pixels):
    half = cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    if min(half.shape[:2]) < SIDE:
        return None
    top, left = ((side - SIDE) // 2 for side in half.shape[:2])
    return np.ascontiguousarray(half[top : top + SIDE, left : left + SIDE])


def _unscaled(found, mean, spread):
    slopes = found[:-1] / spread
    return (float(found[-1] - slopes @ mean), *map(float, slopes))


def table(examples: Sequence[Blurred], found: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    """Errors at each true sigma, and where the estimate is confident, as Markdown."""
    lines = ["| true σ | median | mean error | right | confident | right where confident |"]
    lines.append("|" + " --- |" * 6)
    for true in SIGMAS:
        pairs = [x for x, one in zip(found, examples, strict=True) if one.sigma == true]
        sigma, sure = (np.concatenate(part) for part in zip(*pairs, strict=True))
        right, confident = is_right(sigma, np.full(len(sigma), true)), sure > 0.5
        cells = [
            f"{true:g}",
            f"{np.median(sigma):.2f}",
            f"{np.abs(sigma - true).mean():.2f}",
            f"{right.mean():.2f}",
            f"{confident.mean():.2f}",
            f"{right[confident].mean():.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
