"""How well each focus score tells sharp patches from blurred ones: on pictures blurred on purpose.

    python -m bvit.studies.focus_measures [PICTURES ...] [--patch_size=16] [--count=32]

PICTURES are files, folders or patterns; without any, the photographs in scikit-image's package are
taken, in grey. The middle 224×224 of each is blurred where the truth is known: in a random region
by one sigma ("region"), or by a smooth map from 0 to that sigma ("depth"). Then a sensor's noise is
added. Printed are the area under the ROC curve for every blur, and for all of them together also
the average precision, the best threshold, and its balanced accuracy.
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

from bvit.arguments import EXIT_BAD_INPUT, Parser, fail
from bvit.data.decode import center_crop
from bvit.data.listing import list_images
from bvit.data.photos import CLASS_NAMES, read_photograph
from bvit.image.blur import region_blur
from bvit.image.focus import PAPER_THRESHOLD, WHITE
from bvit.image.focus_measures import FOCUS_MEASURES
from bvit.image.noise import sensor_noise
from bvit.image.patches import block_values
from bvit.image.pixels import grayscale, to_float
from bvit.image.region import smooth_noise
from bvit.image.sigma import estimate_sigma
from bvit.image.variable import variable_gaussian_blur
from bvit.studies.separation import Separation, balanced_accuracy, separation

SIDE = 224
SIGMAS = (1.0, 1.5, 2.0, 3.0, 4.0)
# Standard deviations of the noise, in grey levels of 255.
NOISES = (0.0, 2.0, 5.0)
# A patch counts as sharp or blurred where its mean sigma is below the one or above the other; those
# in between, and those that a region's edge runs through, have no single truth.
SHARP_BELOW, BLURRED_ABOVE = 0.4, 0.75
# Smooth noise from 0 to 1 is in focus below the one, and as blurred as it gets above the other.
FOCUS_BELOW, BLUR_ABOVE = 0.4, 0.7
# A patch of the sharp picture with a smaller deviation, in grey levels, is flat: nothing in it
# shows whether it is in focus.
FLAT_BELOW = 4.0


def _sharpness(image: Float[Array, "n h w 3"], *, patch_size: int) -> Float[Array, "n h/p w/p"]:
    return -estimate_sigma(image, patch_size=patch_size)


# High is sharp: so the estimate of sigma is taken with a minus.
RANKED: dict[str, Callable[..., Array]] = {**FOCUS_MEASURES, "-sigma": _sharpness}


class Patches(NamedTuple):
    """Patches of known truth, under one blur and noise.

    Attributes:
      setting: (blur, sigma, noise).
      sharp: what is to be told.
      textured: which are not flat.
      scores: by the name of the score.
    """

    setting: tuple[str, float, float]
    sharp: Bool[np.ndarray, " n"]
    textured: Bool[np.ndarray, " n"]
    scores: dict[str, Float[np.ndarray, " n"]]


def score_patches(
    image: Float[Array, "n h w 3"],
    *,
    blur: str,
    sigma: float,
    noise: float,
    patch_size: int,
    seed: int,
) -> Patches:
    """Blurs sharp pictures in parts, and scores the patches of which the truth is known.

    Args:
      image: RGB in [0, 1].
      blur: "region" or "depth".
      sigma: the strongest blur, in pixels.
      noise: standard deviation in grey levels of 255; pixels are rounded to 8 bits in any case.
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
        scores={
            name: np.asarray(score(seen, patch_size=patch_size))[known]
            for name, score in RANKED.items()
        },
    )


@partial(jax.jit, static_argnames="shape")
def _depths(keys, shape):
    """Smooth maps from 0 (in focus) to 1, one for each key."""
    noise = jax.vmap(partial(smooth_noise, shape=shape))(keys)
    low, high = (f(noise, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    share = (noise - low) / (high - low)
    return jnp.clip((share - FOCUS_BELOW) / (BLUR_ABOVE - FOCUS_BELOW), 0, 1)


def pooled(name: str, parts: Sequence[Patches], *, textured: bool = False) -> Separation:
    """How well a score tells the sharp patches of several settings, by one threshold for all.

    Args:
      name: of the score.
      parts: the settings.
      textured: whether to leave the flat patches out.
    """
    chosen = [part.textured | (not textured) for part in parts]
    scores = [part.scores[name][keep] for part, keep in zip(parts, chosen, strict=True)]
    sharp = [part.sharp[keep] for part, keep in zip(parts, chosen, strict=True)]
    return separation(np.concatenate(scores), np.concatenate(sharp))


def table(parts: Sequence[Patches]) -> str:
    """The areas under the curve of all settings, and what holds for all of them, as Markdown."""
    head = ["| blur | sigma | noise | patches | " + " | ".join(RANKED) + " |"]
    head.append("|" + " --- |" * (4 + len(RANKED)))
    for part in parts:
        for patches in ("all", "textured"):
            areas = [pooled(name, [part], textured=patches == "textured").auc for name in RANKED]
            blur, sigma, noise = part.setting
            cells = [blur, f"{sigma:g}", f"{noise:g}", patches, *(f"{area:.3f}" for area in areas)]
            head.append("| " + " | ".join(cells) + " |")
    return "\n".join([*head, "", *_summary(parts)])


def _summary(parts):
    yield "| score | noise | patches | AUC | average precision | best threshold | accuracy there |"
    yield "|" + " --- |" * 7
    noises = sorted({part.setting[2] for part in parts})
    for name in RANKED:
        for noise, textured in [*((n, False) for n in noises), (None, False), (None, True)]:
            chosen = [part for part in parts if noise is None or part.setting[2] == noise]
            found = pooled(name, chosen, textured=textured)
            cells = [
                name,
                "any" if noise is None else f"{noise:g}",
                "textured" if textured else "all",
                f"{found.auc:.3f}",
                f"{found.average_precision:.3f}",
                f"{found.threshold:.3g}",
                f"{found.balanced_accuracy:.3f}",
            ]
            yield "| " + " | ".join(cells) + " |"
    for noise in noises:
        chosen = [part for part in parts if part.setting[2] == noise]
        scores, sharp = (
            np.concatenate(x)
            for x in zip(*((part.scores["laplacian"], part.sharp) for part in chosen), strict=True)
        )
        accuracy = balanced_accuracy(scores, sharp, PAPER_THRESHOLD)
        yield f"\nlaplacian at {PAPER_THRESHOLD:g}, noise {noise:g}: accuracy {accuracy:.3f}"


def load(names: Sequence[str], count: int) -> Float[Array, "n 224 224 3"]:
    """The middle of up to `count` pictures, evenly spaced among those that the names stand for.

    Raises:
      ValueError: a name that stands for no picture, a picture that can't be read, or no count.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1: got {count}.")
    if not names:
        grey = (read_photograph(label) for label in range(len(CLASS_NAMES)))
        pictures: list[Any] = [np.repeat(photo[..., None], 3, axis=2) for photo in grey]
    else:
        files, failures = list_images(names, sys.stdin)
        if failures:
            raise ValueError("; ".join(f"{name}: {reason}" for name, reason in failures.items()))
        pictures = [Path(file).read_bytes() for file in files[:: max(1, len(files) // count)]]
    crops = [center_crop(picture, size=SIDE, short_side=SIDE) for picture in pictures[:count]]
    return to_float(jnp.asarray(np.stack(crops)))


def main(arguments: Sequence[str]) -> None:
    """Prints the tables for the pictures that the arguments name."""
    parser = Parser("python -m bvit.studies.focus_measures", __doc__)
    parser.add_argument("pictures", nargs="*", metavar="PICTURES", help="files, folders, patterns")
    parser.add_argument("--patch_size", type=int, default=16, help="side of the patches")
    parser.add_argument("--count", type=int, default=32, help="at most so many pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the blurs and the noise")
    options = parser.parse_args(arguments)
    try:
        image = load(options.pictures, options.count)
        parts = [
            score_patches(
                image,
                blur=blur,
                sigma=sigma,
                noise=noise,
                patch_size=options.patch_size,
                seed=options.seed,
            )
            for blur in ("region", "depth")
            for sigma in SIGMAS
            for noise in NOISES
        ]
    except (ValueError, OSError) as error:
        fail(str(error), EXIT_BAD_INPUT)
    print(table(parts))


if __name__ == "__main__":
    main(sys.argv[1:])
