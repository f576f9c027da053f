"""What the pixels of each small cell say about focus: energies of detail at three scales.

This is the only part of the focus map that touches pixels. All that follows works on cells, which
are 64 times fewer, and so a large image can be taken apart into tiles here and be put together
again without a seam (`REACH` pixels of surroundings make a tile's cells exact).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

# Side of a cell in pixels: three halvings leave one value of it.
CELL = 8
# A cell's energies depend on this many pixels around it: one at the coarsest of three scales.
REACH = CELL
SCALES = 3

# Where each energy stands among the channels of a cell. The gradient's are those of the structure
# tensor (xx, yy, xy); then comes that of the Laplacian; at the finest scale also that of the
# diagonal detail, which is mostly noise.
XX, YY, XY, LAPLACIAN = range(4)
PER_SCALE = 4
DIAGONAL = PER_SCALE * SCALES
MEAN = DIAGONAL + 1
CHANNELS = MEAN + 1

# Energy that white noise of variance 1 has at the finest scale: of a gradient by 2×2 differences,
# of the Laplacian, of the diagonal difference. At each coarser scale its variance is a quarter.
NOISE_GRADIENT, NOISE_LAPLACIAN, NOISE_DIAGONAL = 1.0, 20.0, 1.0
# The noise is that of the cells with least diagonal detail: of white noise, this quantile of the
# energy in 64 pixels is two thirds of its mean.
NOISE_QUANTILE, NOISE_BIAS = 0.1, 1.5
# Darker and brighter cells, in grey levels, are clipped, and show less noise than there is.
DARKEST, BRIGHTEST = 3.0, 252.0


def cell_energies(grey: Float[Array, "h w"]) -> Float[Array, "channels h//8 w//8"]:
    """Mean energies of detail in each cell of 8×8 pixels.

    Args:
      grey: one image in grey levels from 0 to 255, float32, height and width multiples of `CELL`.

    Returns:
      For each cell `PER_SCALE` energies at each of the `SCALES`, the finest first, in squared grey
      levels; then the energy of the diagonal detail at the finest; then the mean grey level.
    """
    channels, side, diagonal = [], CELL, jnp.zeros(())
    for scale in range(SCALES):
        # Kept in memory once: XLA would compute it again for each of its neighbours' energies,
        # which took four times as long.
        padded = lax.optimization_barrier(jnp.pad(grey, 1, mode="edge"))
        here, right, left = padded[1:-1, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2]
        below, above, corner = padded[2:, 1:-1], padded[:-2, 1:-1], padded[2:, 2:]
        dx = (right - here + corner - below) / 2
        dy = (below - here + corner - right) / 2
        laplacian = left + right + above + below - 4 * here
        energies = [dx * dx, dy * dy, dx * dy, laplacian * laplacian]
        channels += [_cell_means(energy, side) for energy in energies]
        if scale == 0:
            diagonal = (corner - below - right + here) / 2
            diagonal = _cell_means(diagonal * diagonal, side)
        rows = padded[1:-1:2] + padded[2::2]
        grey = (rows[:, 1:-1:2] + rows[:, 2::2]) / 4
        side //= 2
    return jnp.stack([*channels, diagonal, grey])


def noise_variance(
    cells: Float[Array, "channels m n"], valid: Bool[Array, "m n"]
) -> Float[Array, ""]:
    """Variance of the noise in squared grey levels, from the cells with least diagonal detail.

    After Donoho and Johnstone 1994, "Ideal spatial adaptation by wavelet shrinkage", who take the
    median; photographs have diagonal detail of their own.

    Args:
      cells: from `cell_energies`.
      valid: which of them count.
    """
    mean = cells[MEAN]
    exposed = valid & (mean > DARKEST) & (mean < BRIGHTEST)
    energy = jnp.sort(jnp.where(exposed, cells[DIAGONAL], jnp.inf).ravel())
    count = exposed.sum(dtype=jnp.int32)
    place = (NOISE_QUANTILE * (count - 1)).astype(jnp.int32)
    found = energy[jnp.maximum(place, 0)]
    return jnp.where(count > 0, NOISE_BIAS / NOISE_DIAGONAL * jnp.where(count > 0, found, 0), 0)


def smooth_cells(
    x: Float[Array, "k m n"], weight: Float[Array, "m n"], sigma: float, radius: int
) -> Float[Array, "k m n"]:
    """Weighted means of cells under a Gaussian window; cells of weight 0 and the outside count not.

    Args:
      x: one grid of cells, with any channels.
      weight: of each cell, >= 0.
      sigma: of the window, in cells; static.
      radius: at which it ends, in cells; static.
    """
    taps = gaussian_taps(sigma, radius)
    total = blur_cells(jnp.concatenate([x * weight, weight[None]]), taps)
    return total[:-1] / jnp.maximum(total[-1], 1e-6)


def gaussian_taps(sigma: float, radius: int) -> Float[np.ndarray, " taps"]:
    """Weights of a Gaussian window, of sum 1."""
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return (taps / taps.sum()).astype(np.float32)


def blur_cells(x: Float[Array, "k m n"], taps: Float[np.ndarray, " taps"]) -> Float[Array, "k m n"]:
    """Filters a grid of cells along both axes, with zeros around it."""
    radius = len(taps) // 2
    for axis in (1, 2):
        padding = [(radius, radius) if i == axis else (0, 0) for i in range(3)]
        padded, size = jnp.pad(x, padding), x.shape[axis]
        filtered: Any = sum(
            float(tap) * lax.slice_in_dim(padded, i, i + size, axis=axis)
            for i, tap in enumerate(taps)
        )
        x = filtered
    return x


def pad_to_cells(grey: Float[Array, "h w"]) -> Float[Array, "h8 w8"]:
    """Mirrors an image at its lower and right border until it consists of whole cells."""
    padding = [(0, -side % CELL) for side in grey.shape]
    return jnp.pad(grey, padding, mode="symmetric") if np.any(padding) else grey


def _cell_means(x: Array, side: int) -> Array:
    height, width = x.shape
    # Whole lines are added first. As a reduction, this took XLA twice as long.
    lines = x.reshape(height // side, side, width)
    rows: Any = sum(lines[:, line] for line in range(side))
    return rows.reshape(height // side, width // side, side).sum(2) / side**2


# The windows under which cells are weighed, as (sigma, radius) in cells: about 15 and 40 pixels.
NEAR, WIDE = (0.8, 2), (2.5, 5)
# Directions in which a gradient's energy at two scales is compared: motion blurs along one alone.
DIRECTIONS = 8
# Energies are compared as logarithms, of no less than this many squared grey levels at the finest
# scale (rounding to 8 bits makes 1/12) and this share of the noise's own energy.
FLOOR, NOISE_FLOOR = 0.3, 0.3
# The share of the noise that is taken off. Taking all of it off separated patches no better: at a
# noise of 5 grey levels the AUC over scenes left out was 0.940, and with this share 0.939.
TAKEN_OFF = 0.733
# The variance of the means of cells is taken to be at least this.
CONTRAST_FLOOR = 1.0
# Noise below this variance makes no difference.
NOISE_LEAST = 0.1

# The local measures, in the order of `measures`: logarithms, and so ratios of energies for a linear
# rule. "least" and "most" are over directions.
MEASURES = (
    "noise",
    "contrast, wide",
    "gradient, scale 0",
    "Laplacian, scale 0",
    "gradient, scale 1",
    "Laplacian, scale 1",
    "Laplacian, scale 2",
    "least gradient, scale 0 over 1",
    "least gradient, scale 0 over 2",
    "most gradient, scale 1 over 2",
    "Laplacian, scale 0, wide",
    "least gradient, scale 0 over 2, wide",
)


def measures(
    cells: Float[Array, "channels m n"], valid: Bool[Array, "m n"], noise: Float[Array, ""]
) -> tuple[Float[Array, "measures m n"], Float[Array, "m n"]]:
    """A dozen local measures of each cell and its surroundings, and how much there is to see.

    Args:
      cells: from `cell_energies`.
      valid: which cells are part of the image.
      noise: from `noise_variance`.

    Returns:
      The `MEASURES`; and the variance of the structure in and around a cell, in squared grey
      levels, with the noise taken off.
    """
    noise = TAKEN_OFF * noise
    weight = valid.astype(cells.dtype)
    near = smooth_cells(cells, weight, *NEAR)
    mean = cells[MEAN] - 128.0  # less is lost of its square
    wide_channels = jnp.stack(
        [
            *(cells[PER_SCALE * scale + i] for scale in (0, 2) for i in (XX, YY, XY)),
            cells[LAPLACIAN],
            mean,
            mean * mean,
        ]
    )
    wide = smooth_cells(wide_channels, weight, *WIDE)
    contrast = jnp.maximum(wide[8] - wide[7] ** 2, 0)
    log_near = [
        _log_tensor(near[PER_SCALE * s : PER_SCALE * s + 3], s, noise) for s in range(SCALES)
    ]
    log_wide = [
        _log_tensor(wide[:3], 0, noise),
        _log_tensor(wide[3:6], 2, noise),
    ]
    found = [
        jnp.broadcast_to(jnp.log(noise + NOISE_LEAST), contrast.shape),
        jnp.log(contrast + CONTRAST_FLOOR),
        _log_gradient(near, 0, noise),
        _log_laplacian(near[LAPLACIAN], 0, noise),
        _log_gradient(near, 1, noise),
        _log_laplacian(near[PER_SCALE + LAPLACIAN], 1, noise),
        _log_laplacian(near[2 * PER_SCALE + LAPLACIAN], 2, noise),
        (log_near[0] - log_near[1]).min(0),
        (log_near[0] - log_near[2]).min(0),
        (log_near[1] - log_near[2]).max(0),
        _log_laplacian(wide[6], 0, noise),
        (log_wide[0] - log_wide[1]).min(0),
    ]
    own_mean = near[MEAN]
    spread = smooth_cells((cells[MEAN] ** 2)[None], weight, *NEAR)[0] - own_mean**2
    coarse = near[2 * PER_SCALE + XX] + near[2 * PER_SCALE + YY]
    structure = jnp.maximum(spread, 0) + jnp.maximum(coarse - 2 * noise / 16, 0)
    return jnp.stack(found), structure


def _log_tensor(tensor: Array, scale: int, noise: Array) -> Array:
    """Logarithms of a gradient's energy along each of the directions, [directions, m, n]."""
    level = noise * NOISE_GRADIENT / 4**scale
    floor = FLOOR / 4**scale / 2 + NOISE_FLOOR / 2 * level
    xx, yy = (jnp.maximum(tensor[i] - level, 0) + floor for i in (XX, YY))
    angle = np.arange(DIRECTIONS) * np.pi / DIRECTIONS
    energy = [
        float(np.cos(a) ** 2) * xx + float(np.sin(a) ** 2) * yy + float(np.sin(2 * a)) * tensor[XY]
        for a in angle
    ]
    return jnp.log(jnp.maximum(jnp.stack(energy), FLOOR / 4**scale / 4))


def _log_gradient(cells: Array, scale: int, noise: Array) -> Array:
    level = 2 * noise * NOISE_GRADIENT / 4**scale
    energy = cells[PER_SCALE * scale + XX] + cells[PER_SCALE * scale + YY]
    return jnp.log(jnp.maximum(energy - level, 0) + FLOOR / 4**scale + NOISE_FLOOR / 2 * level)


def _log_laplacian(energy: Array, scale: int, noise: Array) -> Array:
    level = noise * NOISE_LAPLACIAN / 4**scale
    floor = NOISE_LAPLACIAN / 2 * FLOOR / 4**scale
    return jnp.log(jnp.maximum(energy - level, 0) + floor + NOISE_FLOOR / 2 * level)
