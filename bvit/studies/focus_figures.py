"""The figures of docs/focus.md: the Laplacian's best threshold, and maps beside photographs."""

from collections.abc import Callable
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from skimage import data

from bvit.data.decode import Pixels
from bvit.image.focus import PAPER_THRESHOLD, patch_laplacian_variance
from bvit.image.pixels import to_float
from bvit.studies.focus_fit import area_under_curve
from bvit.studies.focus_measure import best_threshold
from bvit.studies.focus_truth import PATCH, Truth, compressed, focus_pairs, motion_kernel, noisy
from bvit.survey.culling import draw
from bvit.survey.meter import FocusMeter

FACTORS = (0.4, 0.6, 0.8, 1.0, 1.3, 1.6)
NOISES = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0)
QUALITIES = (30, 45, 60, 75, 85, 95)
# Resamplings of the scenes for a band.
RESAMPLED = 100
DOTS_PER_INCH = 110


def threshold_figure(pairs: Path, to: Path, rng: np.random.Generator) -> str:
    """Draws the best threshold of the Laplacian's variance, and returns the numbers as Markdown.

    Args:
      pairs: folder of focus pairs.
      to: the figure, a PNG.
      rng: of the noise, and of the bands.
    """
    truth = focus_pairs(pairs)
    side = f"{truth[0].pixels.shape[1]}"
    panels = {
        f"width of the image (as it is: {side} pixels)": [
            (round(int(side) * f), focus_pairs(pairs, scale=f), lambda x: x) for f in FACTORS
        ],
        "noise, grey levels": [
            (noise, truth, lambda x, noise=noise: noisy(rng, x, noise)) for noise in NOISES
        ],
        "JPEG quality": [
            (quality, truth, lambda x, quality=quality: compressed(x, quality))
            for quality in QUALITIES
        ],
    }
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
    lines = ["| | | best threshold | 95 % | accuracy there | accuracy at 100 | AUC |"]
    lines.append("|" + " --- |" * 7)
    for axis, (what, settings) in zip(axes, panels.items(), strict=True):
        best = []
        for value, photographs, change in settings:
            found = _thresholds(photographs, change, rng)
            best.append(found)
            lines.append(
                f"| {what} | {value:g} | {found[0]:.0f} | {found[1]:.0f} to {found[2]:.0f} "
                f"| {found[3]:.3f} | {found[4]:.3f} | {found[5]:.3f} |"
            )
        values, middle, low, high = ([x[0] for x in settings], *np.array(best).T[:3])
        axis.fill_between(values, low, high, alpha=0.25, lw=0)
        axis.plot(values, middle, "o-")
        axis.axhline(PAPER_THRESHOLD, color="black", ls="--", lw=1)
        axis.set(xlabel=what, yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("best threshold of the variance")
    axes[0].annotate("100", (axes[0].get_xlim()[0], PAPER_THRESHOLD), va="bottom")
    figure.savefig(to, dpi=DOTS_PER_INCH)
    plt.close(figure)
    return "\n".join(lines)


def _thresholds(truth: list[Truth], change: Callable[[Pixels], Pixels], rng: np.random.Generator):
    """Best threshold, its interval, accuracies there and at the paper's, AUC."""
    scores, sharp = {}, {}
    for one in truth:
        image = to_float(change(one.pixels))
        score = np.asarray(patch_laplacian_variance(image, patch_size=PATCH))[one.clear]
        scores.setdefault(one.scene, []).append(score)
        sharp.setdefault(one.scene, []).append(one.sharp[one.clear])

    def joined(scenes):
        return tuple(
            np.concatenate([part for scene in scenes for part in parts[scene]])
            for parts in (scores, sharp)
        )

    names = sorted(scores)
    drawn = [best_threshold(*joined(rng.choice(names, len(names))))[0] for _ in range(RESAMPLED)]
    score, is_sharp = joined(names)
    best, right = best_threshold(score, is_sharp)
    paper = float(((score >= PAPER_THRESHOLD) == is_sharp).mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    return best, low, high, right, paper, area_under_curve(score, is_sharp)


def pictures(to: Path) -> None:
    """Draws maps beside scikit-image's photographs: partly out of focus, moved, and as they are."""
    rows = []
    for pixels in (_defocused(data.astronaut()), _moved(data.coffee()), data.chelsea()):
        found = FocusMeter()(pixels)
        pair = [pixels, draw(pixels, found.probability)]
        rows.append(np.hstack([_to_width(x, 420) for x in pair]))
    Image.fromarray(np.vstack(rows)).save(to, quality=85)


def _defocused(pixels: Pixels) -> Pixels:
    """Out of focus but for a disk in the middle, as a portrait."""
    height, width = pixels.shape[:2]
    place = np.mgrid[:height, :width] - np.array([0.4 * height, 0.45 * width])[:, None, None]
    near = np.hypot(*place)[..., None] < 0.33 * width
    return np.where(near, pixels, cv2.GaussianBlur(pixels, (0, 0), 4.0))


def _moved(pixels: Pixels) -> Pixels:
    """The right half moved."""
    moved = cv2.filter2D(pixels, -1, motion_kernel(17.0, 20.0), borderType=cv2.BORDER_REFLECT_101)
    right = np.arange(pixels.shape[1])[:, None] > pixels.shape[1] / 2
    return np.where(right, moved, pixels)


def _to_width(pixels: Pixels, width: int) -> Pixels:
    height = round(pixels.shape[0] * width / pixels.shape[1])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
