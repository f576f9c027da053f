"""How well each focus measure separates sharp patches from blurred ones.

    python -m bvit.studies.focus_benchmark [PHOTOS ...] [--patch_size=16] [--count=32]

PHOTOS are files, folders or patterns. The default is the grey photographs in scikit-image's
package. The middle 224×224 of each is blurred where the truth is known: a random region by one
sigma ("region"), or everything by a smooth map from 0 to that sigma ("depth"). Then sensor noise is
added. The command prints the area under the ROC curve for every blur. For all of them together it
also prints the average precision, the best threshold, and the balanced accuracy there.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from sklearn import metrics

from bvit.arguments import EXIT_BAD_INPUT, Parser, fail
from bvit.data.decode import center_crop
from bvit.data.listing import list_images
from bvit.data.photos import CLASS_NAMES, read_photograph
from bvit.evaluation.rows import align
from bvit.image.blur import region_blur
from bvit.image.focus import PAPER_THRESHOLD, WHITE
from bvit.image.focus_measures import FOCUS_MEASURES
from bvit.image.noise import sensor_noise
from bvit.image.patches import block_values
from bvit.image.pixels import grayscale, to_float
from bvit.image.region import smooth_noise
from bvit.image.sigma import estimate_sigma
from bvit.image.variable import variable_gaussian_blur

SIDE = 224
SIGMAS = (1.0, 1.5, 2.0, 3.0, 4.0)
# Standard deviations of the noise, in grey levels of 255.
NOISES = (0.0, 2.0, 5.0)
# A patch counts as sharp or blurred where its mean sigma is below the one or above the other. Those
# in between, and those on the edge of a region, have no single truth.
SHARP_BELOW, BLURRED_ABOVE = 0.4, 0.75
# Smooth noise from 0 to 1 is in focus below the one, and as blurred as it gets above the other.
FOCUS_BELOW, BLUR_ABOVE = 0.4, 0.7
# A patch of the sharp image with a smaller deviation, in grey levels, is flat: nothing in it
# shows whether it is in focus.
FLAT_BELOW = 4.0


def _sharpness(
    image: Float[Array, "n h w 3"], *, patch_size: int
) -> Float[Array, "n h//{patch_size} w//{patch_size}"]:
    return -estimate_sigma(image, patch_size=patch_size)


# High is sharp, hence the minus of sigma.
MEASURES: dict[str, Callable[..., Array]] = {**FOCUS_MEASURES, "-sigma": _sharpness}


class Patches(NamedTuple):
    """Patches of known truth, under one blur and noise.

    Attributes:
      setting: (blur, sigma, noise).
      sharp: the truth.
      textured: which are not flat.
      measured: focus measure → its values.
    """

    setting: tuple[str, float, float]
    sharp: Bool[np.ndarray, " n"]
    textured: Bool[np.ndarray, " n"]
    measured: dict[str, Float[np.ndarray, " n"]]


def measure_patches(
    image: Float[Array, "n h w 3"],
    *,
    blur: str,
    sigma: float,
    noise: float,
    patch_size: int,
    seed: int,
) -> Patches:
    """Blurs parts of sharp images, and measures the focus of the patches with a known truth.

    Args:
      image: RGB in [0, 1].
      blur: "region" or "depth".
      sigma: the strongest blur, in pixels.
      noise: standard deviation in grey levels of 255; pixels are always rounded to 8 bits.
      patch_size: side of the patches, a divisor of height and width.
      seed: of the regions, maps and noise.
    """
    blur_key, noise_key = jax.random.split(jax.random.key(seed))
    if blur == "region":
        options = {"sigma_range": (sigma, sigma), "area_range": (0.5, 0.5)}
        blurred, truth = region_blur(blur_key, image, **options, return_map=True)
    else:
        truth = sigma * _depths(jax.random.split(blur_key, len(image)), image.shape[1:3])
        blurred = variable_gaussian_blur(image, truth)
    seen = sensor_noise(noise_key, blurred, read=noise / WHITE, shot=0.0)
    true_sigma = block_values(truth, patch_size)
    one_kind = (true_sigma.max(-1) == 0) | (true_sigma.min(-1) > 0) | (blur == "depth")
    mean = true_sigma.mean(-1)
    known = np.asarray(one_kind & ((mean < SHARP_BELOW) | (mean > BLURRED_ABOVE)))
    detail = WHITE * block_values(grayscale(image), patch_size).std(-1)
    return Patches(
        setting=(blur, sigma, noise),
        sharp=np.asarray(mean < SHARP_BELOW)[known],
        textured=np.asarray(detail >= FLAT_BELOW)[known],
        measured={
            name: np.asarray(measure(seen, patch_size=patch_size))[known]
            for name, measure in MEASURES.items()
        },
    )


@partial(jax.jit, static_argnames="shape")
def _depths(keys, shape):
    """Smooth maps from 0 (in focus) to 1, one for each key."""
    noise = jax.vmap(partial(smooth_noise, shape=shape))(keys)
    low, high = (f(noise, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    share = (noise - low) / (high - low)
    return jnp.clip((share - FOCUS_BELOW) / (BLUR_ABOVE - FOCUS_BELOW), 0, 1)


def pooled(
    name: str, parts: Sequence[Patches], *, textured: bool = False
) -> tuple[Bool[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Truth and focus measure of the patches of several settings, as scikit-learn's metrics take.

    Args:
      name: of the focus measure.
      parts: the settings.
      textured: whether to leave the flat patches out.
    """
    chosen = [part.textured | (not textured) for part in parts]
    pairs = list(zip(parts, chosen, strict=True))
    sharp = np.concatenate([part.sharp[keep] for part, keep in pairs])
    return sharp, np.concatenate([part.measured[name][keep] for part, keep in pairs])


def best_threshold(
    sharp: Bool[np.ndarray, " n"], measured: Float[np.ndarray, " n"]
) -> tuple[float, float]:
    """The threshold, from which on patches count as sharp, with the best balanced accuracy.

    Returns:
      The threshold, and that accuracy.
    """
    false, true, thresholds = metrics.roc_curve(sharp, measured, drop_intermediate=False)
    accuracy = (true + 1 - false) / 2
    best = np.argmax(accuracy)
    return float(thresholds[best]), float(accuracy[best])


def tables(parts: Sequence[Patches]) -> str:
    """The areas under the curve of all settings, and what holds for all together, as Markdown."""
    areas = [["blur", "sigma", "noise", "patches", *MEASURES]]
    for part in parts:
        blur, sigma, noise = part.setting
        for patches in ("all", "textured"):
            found = (pooled(name, [part], textured=patches == "textured") for name in MEASURES)
            cells = (f"{metrics.roc_auc_score(*one):.3f}" for one in found)
            areas.append([blur, f"{sigma:g}", f"{noise:g}", patches, *cells])
    by_noise = {noise: [p for p in parts if p.setting[2] == noise] for noise in NOISES}
    by_noise = {f"{noise:g}": chosen for noise, chosen in by_noise.items() if chosen}
    titles = "measure, noise, patches, AUC, average precision, best threshold, accuracy there"
    summary = [titles.split(", ")]
    for name in MEASURES:
        subsets = [(noise, chosen, False) for noise, chosen in by_noise.items()]
        for noise, chosen, textured in [*subsets, ("any", parts, False), ("any", parts, True)]:
            found = pooled(name, chosen, textured=textured)
            threshold, accuracy = best_threshold(*found)
            ranking = metrics.roc_auc_score(*found), metrics.average_precision_score(*found)
            cells = [*(f"{value:.3f}" for value in ranking), f"{threshold:.3g}", f"{accuracy:.3f}"]
            summary.append([name, noise, "textured" if textured else "all", *cells])
    text = [align(areas), align(summary)]
    for noise, chosen in by_noise.items():
        sharp, measured = pooled("laplacian", chosen)
        accuracy = metrics.balanced_accuracy_score(sharp, measured >= PAPER_THRESHOLD)
        text.append(f"laplacian at {PAPER_THRESHOLD:g}, noise {noise}: accuracy {accuracy:.3f}")
    return "\n\n".join(text)


def load(names: Sequence[str], count: int) -> Float[Array, "n 224 224 3"]:
    """The middle of up to `count` photographs, evenly spaced among those that the names stand for.

    Raises:
      ValueError: a name that stands for no file, a file that can't be read, or no count.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1: got {count}.")
    if not names:
        grey = (read_photograph(label) for label in range(len(CLASS_NAMES)))
        photos: list[Any] = [np.repeat(photo[..., None], 3, axis=2) for photo in grey]
    else:
        files, failures = list_images(names, sys.stdin)
        if failures:
            raise ValueError("; ".join(f"{name}: {reason}" for name, reason in failures.items()))
        photos = [Path(file).read_bytes() for file in files[:: max(1, len(files) // count)]]
    crops = [center_crop(photo, size=SIDE, short_side=SIDE) for photo in photos[:count]]
    return to_float(jnp.asarray(np.stack(crops)))


def main(arguments: Sequence[str]) -> None:
    """Prints the tables for the photographs that the arguments name."""
    parser = Parser("python -m bvit.studies.focus_benchmark", __doc__)
    parser.add_argument("photos", nargs="*", metavar="PHOTOS", help="files, folders, patterns")
    parser.add_argument("--patch_size", type=int, default=16, help="side of the patches")
    parser.add_argument("--count", type=int, default=32, help="the most photographs to take")
    parser.add_argument("--seed", type=int, default=0, help="of the blurs and the noise")
    options = parser.parse_args(arguments)
    fixed = {"patch_size": options.patch_size, "seed": options.seed}
    try:
        image = load(options.photos, options.count)
        parts = [
            measure_patches(image, blur=blur, sigma=sigma, noise=noise, **fixed)
            for blur in ("region", "depth")
            for sigma in SIGMAS
            for noise in NOISES
        ]
    except (ValueError, OSError) as error:
        fail(str(error), EXIT_BAD_INPUT)
    print(tables(parts))


if __name__ == "__main__":
    main(sys.argv[1:])
