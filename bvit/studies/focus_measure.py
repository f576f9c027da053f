"""What `python -m bvit.studies.focus measure` prints: every measure on the same photographs."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import jax
import numpy as np
from jaxtyping import Bool, Float

from bvit.data.decode import Pixels
from bvit.data.listing import list_images
from bvit.image.focus import patch_laplacian_variance
from bvit.image.focus_map import focus_map
from bvit.image.focus_measures import FOCUS_MEASURES, THRESHOLDS
from bvit.image.motion import estimate_motion
from bvit.image.pixels import to_float
from bvit.image.sigma import estimate_sigma
from bvit.studies.focus_fit import Measured, area_under_curve, regression
from bvit.studies.focus_truth import (
    CHANGES,
    PATCH,
    Truth,
    blur_masks,
    compressed,
    focus_pairs,
    middle,
    motion_kernel,
    noisy,
    read,
)
from bvit.survey.meter import WHOLE, FocusMeter

# β² of the F-measure, and the multiple of a map's mean at which it is cut, as the literature on
# defocus takes them (Achanta et al. 2009; Tang et al. 2019, "DeFusionNET").
BETA_SQUARED, ADAPTIVE = 0.3, 1.5
# Resamplings of the scenes for an interval.
RESAMPLED = 200
WHOLE_SIGMAS = (0.0, 1.0, 2.0, 3.0)
MOTION_LENGTHS = (5, 8, 12, 18, 25)
MOTION_PICTURES = 24
TIMES = 9

Measure = Callable[[Pixels], np.ndarray]


def _score(name, pixels):
    return np.asarray(FOCUS_MEASURES[name](to_float(pixels), patch_size=PATCH))


def _laplacian_over_gradient(pixels):
    """Σ Laplacian² / Σ |∇I|² of each patch."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float64)
    energies = [
        np.square(cv2.Laplacian(grey, cv2.CV_64F)),
        sum(np.square(np.gradient(grey, axis=axis)) for axis in (0, 1)),
    ]
    rows, columns = (side // PATCH for side in grey.shape)
    above, below = (x.reshape(rows, PATCH, columns, PATCH).sum((1, 3)) for x in energies)
    return above / (below + PATCH**2)


def _map(pixels):
    return np.asarray(focus_map(to_float(pixels), patch_size=PATCH))


def _sigma(pixels):
    return -np.asarray(estimate_sigma(to_float(pixels), patch_size=PATCH))


MEASURES: dict[str, Measure] = {
    **{name: partial(_score, name) for name in FOCUS_MEASURES},
    "Σ Laplacian² / Σ gradient²": _laplacian_over_gradient,
    "-sigma": _sigma,
    "focus_map": _map,
}
# Scores from which a patch counts as sharp; the others have none of their own.
OWN = {**THRESHOLDS, "focus_map": 0.5}


def report(pairs: Path, masks: Path, sharp: Sequence[str], rng: np.random.Generator) -> str:
    """All tables, as Markdown."""
    near_and_far, drawn = focus_pairs(pairs), blur_masks(masks)
    parts = [
        "Patches of 16 pixels with clear contrast, of the pairs",
        patch_table(near_and_far, rng),
        "Patches of the drawn maps",
        patch_table(drawn, rng, changes=("as it is",)),
        "Maps of pixels",
        mask_table(drawn),
        "Whole photographs",
        whole_table([*near_and_far, *drawn], sharp, rng),
        "Motion",
        motion_table(sharp, rng),
        "Time",
        time_table(near_and_far[0].pixels),
    ]
    return "\n\n".join(parts)


def patch_table(
    truth: Sequence[Truth], rng: np.random.Generator, changes: Sequence[str] = tuple(CHANGES)
) -> str:
    """AUC with its interval over scenes, accuracy at the own and at the best threshold."""
    lines = ["| measure | change | AUC | own threshold | accuracy there | best | accuracy there |"]
    lines.append("|" + " --- |" * 7)
    seen = {change: [CHANGES[change](rng, one.pixels) for one in truth] for change in changes}
    for name, function in MEASURES.items():
        for change in changes:
            scores = [function(x)[one.clear] for x, one in zip(seen[change], truth, strict=True)]
            sharp = [one.sharp[one.clear] for one in truth]
            low, high = _interval(scores, sharp, [one.scene for one in truth], rng)
            score, is_sharp = np.concatenate(scores), np.concatenate(sharp)
            best, right = best_threshold(score, is_sharp)
            own = OWN.get(name)
            there = "-" if own is None else f"{((score >= own) == is_sharp).mean():.3f}"
            cells = [
                name,
                change,
                f"{area_under_curve(score, is_sharp):.3f} [{low:.3f}, {high:.3f}]",
                "-" if own is None else f"{own:g}",
                there,
                f"{best:.3g}",
                f"{right:.3f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"({len(score)} patches of {len(truth)} photographs)"])


def _interval(scores, sharp, scenes, rng):
    """95 % interval of the AUC, by drawing scenes again."""
    by_scene = {
        scene: [i for i, other in enumerate(scenes) if other == scene] for scene in set(scenes)
    }
    names = sorted(by_scene)
    areas = []
    for _ in range(RESAMPLED):
        drawn = [i for name in rng.choice(names, len(names)) for i in by_scene[name]]
        score, is_sharp = (np.concatenate([x[i] for i in drawn]) for x in (scores, sharp))
        if 0 < is_sharp.sum() < len(is_sharp):
            areas.append(area_under_curve(score, is_sharp))
    return np.quantile(areas, [0.025, 0.975])


def best_threshold(
    score: Float[np.ndarray, " n"], sharp: Bool[np.ndarray, " n"]
) -> tuple[float, float]:
    """The threshold with the best accuracy, and that accuracy."""
    order = np.argsort(score, kind="stable")
    ranked, is_sharp = score[order], sharp[order]
    # At the i-th score all below it count as blurred.
    right = np.cumsum(~is_sharp) - ~is_sharp + is_sharp[::-1].cumsum()[::-1]
    first = np.flatnonzero(np.diff(ranked, prepend=-np.inf) > 0)
    best = first[np.argmax(right[first])]
    return float(ranked[best]), float(right[best] / len(score))


def f_measure(found: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
    """Fβ of the pixels that are found sharp, β² = 0.3."""
    both = float((found & truth).sum())
    if not both:
        return 0.0
    precision, recall = both / found.sum(), both / truth.sum()
    return (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)


def map_scores(probability: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> list[float]:
    """Fβ at 1/2, Fβ at the adaptive threshold, best Fβ over thresholds, mean absolute error."""
    adaptive = min(ADAPTIVE * probability.mean(), 0.95)
    return [
        f_measure(probability >= 0.5, mask),
        f_measure(probability >= adaptive, mask),
        max(f_measure(probability >= t, mask) for t in np.linspace(0.02, 0.98, 49)),
        float(np.abs(probability - mask).mean()),
    ]


def mask_table(truth: Sequence[Truth]) -> str:
    """The focus map of each pixel against maps drawn by hand."""
    lines = ["| photograph | Fβ at 0.5 | Fβ, adaptive | Fβ, best | mean absolute error |"]
    lines.append("|" + " --- |" * 5)
    rows = []
    for one in truth:
        probability = np.asarray(focus_map(to_float(one.pixels), patch_size=1))
        rows.append(map_scores(probability, one.mask))
        lines.append(f"| {one.scene} | " + " | ".join(f"{x:.3f}" for x in rows[-1]) + " |")
    lines.append("| mean | " + " | ".join(f"{x:.3f}" for x in np.mean(rows, axis=0)) + " |")
    return "\n".join(lines)


def left_out_details(examples: Sequence[Measured], scores: Sequence[np.ndarray]) -> str:
    """Fβ of the drawn maps by weights that never saw the photograph; cells are interpolated."""
    rows, names = [], []
    for one, score in zip(examples, scores, strict=True):
        if one.truth.mask is not None and one.change == "as it is":
            height, width = one.truth.mask.shape
            coarse = (1 / (1 + np.exp(-score))).astype(np.float32)
            probability = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
            rows.append(map_scores(probability, one.truth.mask))
            names.append(one.truth.scene)
    lines = ["| left out | Fβ at 0.5 | Fβ, adaptive | Fβ, best | mean absolute error |"]
    lines.append("|" + " --- |" * 5)
    for name, row in [*zip(names, rows, strict=True), ("mean", np.mean(rows, axis=0))]:
        lines.append(f"| {name} | " + " | ".join(f"{x:.3f}" for x in row) + " |")
    return "\n".join(lines)


def whole_table(truth: Sequence[Truth], sharp: Sequence[str], rng: np.random.Generator) -> str:
    """How often whole photographs are called sharp, blurred and unknown."""
    meter = FocusMeter()
    counts: dict[str, list[str]] = {}
    for one in truth:
        counts.setdefault(f"in part in focus ({one.kind})", []).append(meter(one.pixels).verdict)
    for pixels in _sharp(sharp, 60):
        for sigma in WHOLE_SIGMAS:
            seen = cv2.GaussianBlur(pixels, (0, 0), sigma) if sigma else pixels
            what = f"sharp, blurred by σ = {sigma:g}" if sigma else "sharp"
            counts.setdefault(what, []).append(meter(seen).verdict)
    verdicts = ("sharp", "blurred", "unknown")
    lines = ["| photographs | " + " | ".join(verdicts) + " |", "|" + " --- |" * 4]
    for what, found in counts.items():
        lines.append(f"| {what} | " + " | ".join(str(found.count(v)) for v in verdicts) + " |")
    return "\n".join(lines)


def fit_whole(
    truth: Sequence[Truth], sharp: Sequence[str], rng: np.random.Generator
) -> Float[np.ndarray, " 2"]:
    """`bvit.survey.meter.WHOLE`: from the sharpest log-odds to those of the whole photograph.

    Photographs that are in focus, in part or in whole, against sharp ones blurred by a Gaussian of
    1 to 3 pixels or by motion; both sides count alike.
    """
    in_focus = [_sharpest(one.pixels) for one in truth]
    blurred = []
    for pixels in _sharp(sharp, 60):
        in_focus.append(_sharpest(pixels))
        kernels = [motion_kernel(length, rng.uniform(0, 180)) for length in (6, 15)]
        seen = [cv2.GaussianBlur(pixels, (0, 0), sigma) for sigma in (1.0, 1.5, 2.0, 3.0)]
        blurred += [_sharpest(x) for x in (*seen, *(cv2.filter2D(pixels, -1, k) for k in kernels))]
    x = np.array([*in_focus, *blurred])
    y = np.repeat([1.0, 0.0], [len(in_focus), len(blurred)])
    counts = len(x) / 2 / np.where(y == 1, len(in_focus), len(blurred))
    known = np.isfinite(x)
    slope, constant = regression(x[known, None], y[known], counts[known])
    return np.array([constant, slope])


def _sharpest(pixels):
    share = FocusMeter()(pixels).sharp
    return np.nan if share is None else (np.log(share / (1 - share)) - WHOLE[0]) / WHOLE[1]


def motion_table(sharp: Sequence[str], rng: np.random.Generator) -> str:
    """Direction and length of linear motions, on 256×256 pixels, noise of 2 levels and JPEG 85."""
    lines = [
        "| length | direction within 10° | and length within 20 % | confidence: right, wrong |"
    ]
    lines.append("|" + " --- |" * 4)
    pictures = [
        x[:256, :256] for x in _sharp(sharp, 4 * MOTION_PICTURES) if min(x.shape[:2]) >= 256
    ]
    for length in MOTION_LENGTHS:
        seen, angles = [], rng.uniform(-90, 90, MOTION_PICTURES)
        for pixels, angle in zip(pictures, angles, strict=False):
            kernel = motion_kernel(length, angle)
            moved = cv2.filter2D(pixels, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
            seen.append(compressed(noisy(rng, moved, 2.0), 85))
        found = estimate_motion(to_float(np.stack(seen)), 2.0)
        off = np.abs((np.asarray(found.angle) - angles[: len(seen)] + 90) % 180 - 90) <= 10
        both = off & (np.abs(np.asarray(found.length) - length) <= 0.2 * length)
        sure = np.asarray(found.confidence)
        means = [f"{sure[x].mean():.2f}" if x.any() else "-" for x in (both, ~both)]
        lines.append(f"| {length} | {off.mean():.2f} | {both.mean():.2f} | {', '.join(means)} |")
    return "\n".join([*lines, "", f"({len(pictures[:MOTION_PICTURES])} photographs)"])


def time_table(pixels: Pixels) -> str:
    """Milliseconds a megapixel, the least of several runs."""
    size = 8 * 224 * 224 / 1e6
    image = to_float(np.stack([np.resize(pixels[:224, :224], (224, 224, 3))] * 8))
    grey = [cv2.cvtColor(pixels[:224, :224], cv2.COLOR_RGB2GRAY)] * 8

    def opencv_patches():
        for one in grey:
            for y in range(0, 224, PATCH):
                for x in range(0, 224, PATCH):
                    cv2.Laplacian(one[y : y + PATCH, x : x + PATCH], cv2.CV_64F).var()

    def opencv_whole():
        for one in grey:
            cv2.Laplacian(one, cv2.CV_64F).reshape(14, PATCH, 14, PATCH).var((1, 3))

    functions = {
        "OpenCV, a Laplacian for each patch": opencv_patches,
        "OpenCV, one Laplacian": opencv_whole,
        "patch_laplacian_variance": lambda: patch_laplacian_variance(image, patch_size=PATCH),
        "relative": lambda: FOCUS_MEASURES["relative"](image, patch_size=PATCH),
        "focus_map": lambda: focus_map(image, patch_size=PATCH),
    }
    lines = ["| 8 images of 224×224 | ms a megapixel |", "| --- | --- |"]
    for name, function in functions.items():
        jax.block_until_ready(function())
        least = min(_seconds(function) for _ in range(TIMES))
        lines.append(f"| {name} | {1000 * least / size:.1f} |")
    return "\n".join(lines)


def _seconds(function):
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def _sharp(names, count):
    files, _ = list_images(names, [])
    return [middle(read(path)) for path in files[:: max(1, len(files) // count)][:count]]
