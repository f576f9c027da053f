"""How the camera moved: direction and length of a linear motion blur.

A motion of length L multiplies the spectrum by a sinc, whose zeros are parallel stripes; the power
cepstrum (the Fourier transform of the spectrum's logarithm) therefore dips at a distance of L along
the motion (Yitzhaky and Kopeika 1997, "Identification of blur parameters from motion blurred
images"). A lens out of focus dips in all directions alike, so what counts is the dip below the
median over directions. In photographs alone it is too weak; it is helped by the gradients along
each direction, of which motion takes the fine ones away.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from bvit.image.batching import map_images
from bvit.image.checks import check_one_each
from bvit.image.evidence import NOISE_GRADIENT
from bvit.image.focus_map import grey_levels
from bvit.image.pixels import check_image

# Spectra are taken of parts of this many pixels and averaged, half of them overlapping.
PART, HOP = 128, 64
# Directions that are tried, and lengths in pixels; the estimate lies between them.
ANGLES = 36
SHORTEST, LONGEST = 3, 32
# Added to power, in squared grey levels: weaker frequencies are taken for noise.
LEAST_POWER = 20.0
# How much a unit of the logarithm of gradient energies weighs against the cepstrum. Both this and
# the power were chosen on 12 ImageNet photographs, blurred by 5 to 25 pixels.
GRADIENT_WEIGHT = 0.01
# Scales of gradients: energies of the finer two over those of the coarser two.
SCALES = 4
FLOOR = 0.3


class Motion(NamedTuple):
    """What is found in each image.

    Attributes:
      length: of the motion in pixels, from `SHORTEST` to `LONGEST`.
      angle: its direction in degrees, counterclockwise from the horizontal, from -90 to 90.
      dip: how far the cepstrum dips there below the median over directions.
      confidence: from 0 to 1, the higher the deeper the dip; an uncalibrated guess at whether the
        direction is right within 10 degrees and the length within a fifth, if it is blurred.
    """

    length: Float[Array, "*b"]
    angle: Float[Array, "*b"]
    dip: Float[Array, "*b"]
    confidence: Float[Array, "*b"]


# Log-odds of the confidence: of a dip of 0, and for each unit of it. Set by hand, not fitted;
# docs/focus.md has what it is worth.
CONFIDENCE = (-3.0, 200.0)


def estimate_motion(
    image: Float[ArrayLike, "*b h w c"], noise: float | Float[ArrayLike, "*b"] = 0.0
) -> Motion:
    """Estimates the direction and length of a linear motion that blurs a whole image.

    Give it parts of an image to see where it moved: 256 pixels are enough, 128 the least.

    Args:
      image: grey or RGB in [0, 1], any leading batch axes, at least 128 pixels high and wide.
      noise: standard deviation of its noise in grey levels of 255: one for all images, or one each.

    Returns:
      One estimate an image. A sharp image gets one too, which means nothing.

    Raises:
      ValueError: not an image, or a smaller one; noise that is not one for each image.
    """
    check_image(image)
    *batch, height, width, _ = np.shape(image)
    if min(height, width) < PART:
        raise ValueError(
            f"a motion is estimated from at least {PART}×{PART} pixels: got {height}×{width}; "
            "give a larger part of the image."
        )
    check_one_each("noise", noise, tuple(batch))
    return _estimate(jnp.asarray(image), jnp.asarray(noise, jnp.float32))


@jax.jit
def _estimate(image: Array, noise: Array) -> Motion:
    def one(image: Array, noise: Array) -> Motion:
        return deepest(direction_lengths(grey_levels(image), noise**2))

    return map_images(one, image, jnp.broadcast_to(noise, image.shape[:-3]))


def direction_lengths(
    grey: Float[Array, "h w"], noise_variance: Float[Array, ""]
) -> tuple[Float[Array, "angles lengths"], Float[Array, "angles lengths"]]:
    """For each direction and length, how little speaks for it: lowest is likeliest.

    Means over several parts of an image are more reliable than each.

    Args:
      grey: one image in grey levels from 0 to 255.
      noise_variance: of its noise, in squared grey levels.

    Returns:
      What cepstrum and gradients say together, and the cepstrum alone. Lengths go from
      `SHORTEST` - 1 to `LONGEST` + 1.
    """
    parts = jnp.stack(
        [
            grey[top : top + PART, left : left + PART]
            for top in _starts(grey.shape[0])
            for left in _starts(grey.shape[1])
        ]
    )
    taper = np.hanning(PART + 1)[1:].astype(np.float32)
    taper = taper[:, None] * taper
    parts = (parts - parts.mean((1, 2), keepdims=True)) * taper
    power = jnp.square(jnp.abs(jnp.fft.rfft2(parts))) / float(np.sum(taper**2))
    cepstrum = jnp.fft.irfft2(jnp.log(power + LEAST_POWER).mean(0), (PART, PART))
    rows, columns, angle = _rays()
    along = _sample(cepstrum, rows, columns)
    dips = along - jnp.median(along, axis=0)
    return dips + GRADIENT_WEIGHT * _gradients(grey, noise_variance, angle)[:, None], dips


def deepest(
    found: tuple[Float[Array, "angles lengths"], Float[Array, "angles lengths"]],
) -> Motion:
    """The likeliest direction and length, and between those that were tried."""
    both, dips = found
    inner = both[:, 1:-1]
    place = jnp.argmin(inner)
    i, j = place // inner.shape[1], place % inner.shape[1]
    along = _vertex(both[i, j], both[i, j + 1], both[i, j + 2])
    turned = _vertex(inner[(i - 1) % ANGLES, j], inner[i, j], inner[(i + 1) % ANGLES, j])
    angle = -90 + (i + turned) * (180 / ANGLES)
    dip = -dips[i, j + 1]
    return Motion(
        length=SHORTEST + j + along,
        angle=jnp.where(angle >= 90, angle - 180, jnp.where(angle < -90, angle + 180, angle)),
        dip=dip,
        confidence=jax.nn.sigmoid(CONFIDENCE[0] + CONFIDENCE[1] * dip),
    )


def _starts(side: int) -> list[int]:
    last = side - PART
    return sorted({min(start, last) for start in range(0, last + HOP, HOP)})


def _gradients(grey: Array, noise: Array, angle: np.ndarray) -> Array:
    """Logarithms of gradient energies along each direction: of finer scales less of coarser."""
    total = jnp.zeros(())
    for scale in range(SCALES):
        dx = (grey[:-1, 1:] - grey[:-1, :-1] + grey[1:, 1:] - grey[1:, :-1]) / 2
        up = (grey[:-1, :-1] - grey[1:, :-1] + grey[:-1, 1:] - grey[1:, 1:]) / 2
        level = noise * NOISE_GRADIENT / 4**scale
        xx, yy, xy = (x.mean() for x in (dx * dx, up * up, dx * up))
        energy = np.cos(angle) ** 2 * xx + np.sin(angle) ** 2 * yy + np.sin(2 * angle) * xy
        logarithm = jnp.log(jnp.maximum(energy - level, 0) + FLOOR)
        total = total + (logarithm if scale < SCALES / 2 else -logarithm)
        height, width = (side // 2 * 2 for side in grey.shape)
        corners: Any = [grey[i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
        grey = sum(corners) / 4
    return total - total.min()


def _rays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places in a cepstrum along each direction, and the directions in radians; rows go down."""
    angle = (-np.pi / 2 + np.arange(ANGLES) * np.pi / ANGLES).astype(np.float32)
    length = np.arange(SHORTEST - 1, LONGEST + 2)
    return -np.sin(angle)[:, None] * length, np.cos(angle)[:, None] * length, angle


def _sample(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """Linear interpolation; places wrap around."""
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = (rows - top).astype(np.float32), (columns - left).astype(np.float32)
    upper, lower = top % PART, (top + 1) % PART
    near, far = left % PART, (left + 1) % PART
    above = x[upper, near] * (1 - right) + x[upper, far] * right
    below = x[lower, near] * (1 - right) + x[lower, far] * right
    return above * (1 - down) + below * down


def _vertex(before: Array, here: Array, after: Array) -> Array:
    """Where a parabola through three points has its lowest one, from -1/2 to 1/2."""
    bend = before - 2 * here + after
    place = (before - after) / (2 * jnp.maximum(bend, 1e-9))
    return jnp.where(bend > 1e-9, jnp.clip(place, -0.5, 0.5), 0)
