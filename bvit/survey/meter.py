"""Measures whole photographs of any size, by programs of few fixed shapes and in bounded memory.

Pixels are looked at in tiles, several images' together; what is left of them, 64 times less, is
put together on the host and judged in blocks. A tile brings the pixels around it along, and a block
the cells, so that (but for the borders of images smaller than a tile) the answer is that of
`focus_map` of the whole image.
"""

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bvit.data.decode import Pixels, UnreadableImageError
from bvit.image.batching import map_images
from bvit.image.evidence import (
    BRIGHTEST,
    CELL,
    CHANNELS,
    DARKEST,
    DIAGONAL,
    MEAN,
    NOISE_BIAS,
    NOISE_DIAGONAL,
    NOISE_QUANTILE,
    REACH,
    cell_energies,
    measures,
)
from bvit.image.focus_map import (
    CONTEXT,
    FITTED,
    FLAT,
    FLAT_NOISE,
    SEEN,
    both_log_odds,
    grey_levels,
)
from bvit.image.motion import PART, deepest, direction_lengths
from bvit.image.pixels import to_float
from bvit.image.sigma_map import sigma_and_confidence

# Side of a tile in pixels with what it brings along, and how many run together: they stay in the
# cache of a core.
TILE, TILES = 272, 8
# Sides of a block in cells with what it brings along: the smaller for images that it holds whole.
SMALL_BLOCK, BLOCK = 40, 96
# A motion is looked for in up to so many windows of this side, or of a smaller one.
WINDOWS, WINDOW = 4, 256
# At least this share of the area with detail must be blurred before a motion is looked for, and the
# motion must be at least so probable and so long (a shorter one looks like detail).
MOVED_SHARE, LIKELY, SHORTEST_TOLD = 0.3, 0.5, 4.0
# Where less than this share of an image has detail, nothing is reported.
LEAST_SEEN = 0.005
# Something in an image is in focus if the sharpest of its detail is; this share of it.
SHARPEST = 0.1
# Log-odds that something is in focus: of mean log-odds of 0 among the sharpest, and for each unit.
# `python -m bvit.studies.focus fit` prints them.
WHOLE = (-3.725, 1.605)
# Where more than this share of an image is blurred, it is called partly blurred.
PARTLY = 0.1


class Focus(NamedTuple):
    """What was found in one photograph; None where there is no detail.

    Attributes:
      width: in pixels.
      height: in pixels.
      verdict: "sharp", "blurred" or "unknown".
      sharp: the probability that something in it is in focus.
      blurred: the share that is out of focus, of the area with detail.
      flat: the share of the whole area without detail.
      sigma: of the median cell with detail, in pixels.
      sigma_blurred: of the median cell of what is out of focus.
      kind: "focused", "partly blurred", "defocus", "motion" or "flat".
      motion_length: in pixels, where it moved.
      motion_angle: in degrees, counterclockwise from the horizontal.
      motion_confidence: from 0 to 1, uncalibrated, see `bvit.image.motion`.
      probability: for each cell of 8×8 pixels, that it is in focus.
    """

    width: int
    height: int
    verdict: str
    sharp: float | None
    blurred: float | None
    flat: float
    sigma: float | None
    sigma_blurred: float | None
    kind: str
    motion_length: float | None
    motion_angle: float | None
    motion_confidence: float | None
    probability: Float[np.ndarray, "m n"]


class _Open(NamedTuple):
    """An image whose tiles are not all done."""

    name: Any
    pixels: Pixels | UnreadableImageError
    cells: Float[np.ndarray, "channels m n"] | None
    left: list[int]


class FocusMeter:
    """Measures photographs, their tiles several at once. Threads may share it: it has no state."""

    def each(
        self, pictures: Iterable[tuple[Any, Pixels | UnreadableImageError]]
    ) -> Iterator[tuple[tuple[Any, Pixels], Focus | UnreadableImageError]]:
        """Measures images, in order.

        Args:
          pictures: (name, uint8 RGB pixels); an error in place of pixels is passed on.

        Yields:
          ((name, pixels), what was found).
        """
        opened: deque[_Open] = deque()
        batch: list[tuple[_Open, tuple[int, int], np.ndarray]] = []
        for name, pixels in pictures:
            opened.append(_open(name, pixels))
            for place, tile in _tiles(opened[-1]):
                batch.append((opened[-1], place, tile))
                if len(batch) == TILES:
                    _measure_tiles(batch)
                    batch = []
            yield from _finished(opened)
        if batch:
            _measure_tiles(batch)
        yield from _finished(opened)

    def __call__(self, pixels: Pixels) -> Focus:
        """Measures one photograph, uint8 RGB [h, w, 3]."""
        ((_, found),) = self.each([(None, pixels)])
        return found


def _open(name, pixels):
    if isinstance(pixels, UnreadableImageError):
        return _Open(name, pixels, None, [0])
    rows, columns = (-(-side // CELL) for side in pixels.shape[:2])
    cells = np.empty((CHANNELS, rows, columns), np.float32)
    count = len(_starts(rows)) * len(_starts(columns))
    return _Open(name, pixels, cells, [count])


def _starts(cells):
    """Where tiles begin along an axis, in cells; each leaves out its outer ring, but at borders."""
    size, ring = TILE // CELL, REACH // CELL
    last = max(0, cells - size)
    return sorted({min(start, last) for start in range(0, last + size - 2 * ring, size - 2 * ring)})


def _tiles(picture):
    """The tiles of an image, each with its place in cells; what lies outside repeats the edge."""
    if picture.cells is None:
        return
    _, rows, columns = picture.cells.shape
    height, width = picture.pixels.shape[:2]
    for top in _starts(rows):
        for left in _starts(columns):
            y, x = top * CELL, left * CELL
            tile = picture.pixels[y : y + TILE, x : x + TILE]
            # First to whole cells as `focus_map` does, by mirroring, then to a whole tile.
            mirrored = [(0, min(TILE, -tile.shape[i] % CELL)) for i in (0, 1)]
            if y + TILE >= height or x + TILE >= width:
                tile = np.pad(tile, [*mirrored, (0, 0)], mode="symmetric")
                rest = [(0, TILE - side) for side in tile.shape[:2]]
                tile = np.pad(tile, [*rest, (0, 0)], mode="edge")
            yield (top, left), tile


def _measure_tiles(batch):
    # Two programs: most small images are one tile.
    tiles = np.zeros((1 if len(batch) == 1 else TILES, TILE, TILE, 3), np.uint8)
    for i, (_, _, tile) in enumerate(batch):
        tiles[i] = tile
    found = np.asarray(_tile_cells(tiles))
    ring = REACH // CELL
    for (picture, (top, left), _), cells in zip(batch, found, strict=False):
        _, rows, columns = picture.cells.shape
        # The outer ring is exact only where it is the image's own border.
        start = [0 if place == 0 else ring for place in (top, left)]
        size = TILE // CELL
        end = [
            min(size if place + size >= total else size - ring, total - place)
            for place, total in ((top, rows), (left, columns))
        ]
        place = (
            slice(None),
            slice(top + start[0], top + end[0]),
            slice(left + start[1], left + end[1]),
        )
        picture.cells[place] = cells[:, start[0] : end[0], start[1] : end[1]]
        picture.left[0] -= 1


def _finished(opened):
    while opened and opened[0].left[0] == 0:
        picture = opened.popleft()
        if picture.cells is None:
            yield (picture.name, picture.pixels), picture.pixels
        else:
            yield (picture.name, picture.pixels), judge(picture.cells, picture.pixels)


@jax.jit
def _tile_cells(tiles):
    return map_images(lambda tile: cell_energies(grey_levels(to_float(tile))), tiles)


def host_noise_variance(cells: Float[np.ndarray, "channels m n"]) -> float:
    """`bvit.image.evidence.noise_variance` of a whole image, without sorting all its cells."""
    exposed = (cells[MEAN] > DARKEST) & (cells[MEAN] < BRIGHTEST)
    energy = cells[DIAGONAL][exposed]
    if not energy.size:
        return 0.0
    place = int(np.float32(NOISE_QUANTILE) * np.float32(energy.size - 1))
    return float(NOISE_BIAS / NOISE_DIAGONAL * np.partition(energy, place)[place])


def judge(cells: Float[np.ndarray, "channels m n"], pixels: Pixels) -> Focus:
    """What the cells of a photograph say, and where they do not say enough, its pixels."""
    noise = host_noise_variance(cells)
    log_odds, sigma, sure, structure = _in_blocks(cells, noise)
    height, width = pixels.shape[:2]
    seen = structure > FLAT + FLAT_NOISE * noise
    share = float(seen.mean())
    probability = 1 / (1 + np.exp(-log_odds))
    if share < LEAST_SEEN:
        nothing = (None,) * 4
        return Focus(
            width, height, "unknown", None, None, 1 - share, None, None, "flat", *nothing[:3],
            probability,
        )  # fmt: skip
    odds, weight = log_odds[seen], structure[seen] / (structure[seen] + SEEN)
    sharp = float(1 / (1 + np.exp(-(WHOLE[0] + WHOLE[1] * sharpest(odds)))))
    out = odds < 0
    blurred = float(out.mean())
    sigmas, trust = sigma[seen], weight * sure[seen]
    found = Focus(
        width=width,
        height=height,
        verdict="sharp" if sharp >= 0.5 else "blurred",
        sharp=sharp,
        blurred=blurred,
        flat=1 - share,
        sigma=_weighted_median(sigmas, trust),
        sigma_blurred=_weighted_median(sigmas[out], trust[out]) if out.any() else None,
        kind="defocus" if sharp < 0.5 else "partly blurred" if blurred > PARTLY else "focused",
        motion_length=None,
        motion_angle=None,
        motion_confidence=None,
        probability=probability,
    )
    if blurred < MOVED_SHARE or min(height, width) < PART:
        return found
    moved = _motion(pixels, np.where(seen & (log_odds < 0), structure, 0.0), noise)
    if moved is None or moved.confidence < LIKELY or moved.length < SHORTEST_TOLD:
        return found
    return found._replace(
        kind="motion" if sharp < 0.5 else "partly motion",
        motion_length=float(moved.length),
        motion_angle=float(moved.angle),
        motion_confidence=float(moved.confidence),
    )


def sharpest(log_odds: Float[np.ndarray, " n"]) -> float:
    """Mean log-odds of the sharpest share of the cells with detail."""
    count = max(1, round(SHARPEST * log_odds.size))
    return float(np.partition(log_odds, -count)[-count:].mean())


def _in_blocks(cells, noise):
    """Log-odds, sigma, its confidence and structure of each cell, [4, m, n]."""
    _, rows, columns = cells.shape
    whole = max(rows, columns) <= SMALL_BLOCK
    size, margin = (SMALL_BLOCK, 0) if whole else (BLOCK, CONTEXT)
    core = size - 2 * margin
    found = np.empty((4, rows, columns), np.float32)
    for top in range(0, rows, core):
        for left in range(0, columns, core):
            block = np.zeros((CHANNELS, size, size), np.float32)
            valid = np.zeros((size, size), bool)
            y, x = max(0, top - margin), max(0, left - margin)
            part = cells[:, y : top + core + margin, x : left + core + margin]
            down, right = y - (top - margin), x - (left - margin)
            inside = (slice(down, down + part.shape[1]), slice(right, right + part.shape[2]))
            block[:, *inside], valid[inside] = part, True
            judged = np.asarray(_judge_block(block, valid, np.float32(noise)))
            target = found[:, top : top + core, left : left + core]
            target[:] = judged[
                :, margin : margin + target.shape[1], margin : margin + target.shape[2]
            ]
    return found


@jax.jit
def _judge_block(cells, valid, noise):
    found, structure = measures(cells, valid, noise)
    own, mean = both_log_odds(found, structure, valid, cells[MEAN], noise, FITTED)
    sigma, sure = sigma_and_confidence(found, structure)
    return jnp.stack([FITTED.own * own + FITTED.neighbours * mean, sigma, sure, structure])


def _weighted_median(x, weight):
    order = np.argsort(x)
    total = np.cumsum(weight[order])
    if total[-1] <= 0:
        return float(np.median(x))
    return float(x[order][np.searchsorted(total, total[-1] / 2)])


def _motion(pixels, structure, noise):
    """The motion of what is blurred, from the windows in which most of it is seen."""
    height, width = pixels.shape[:2]
    side = WINDOW if min(height, width) >= WINDOW else PART
    corners = [
        (top, left)
        for top in range(0, height - side + 1, side // 2)
        for left in range(0, width - side + 1, side // 2)
    ]
    cells = side // CELL
    weights = [
        float(structure[y // CELL : y // CELL + cells, x // CELL : x // CELL + cells].sum())
        for y, x in corners
    ]
    order = np.argsort(weights)[::-1]
    chosen: list[int] = []
    for i in order:
        apart = all(
            max(abs(corners[i][0] - corners[j][0]), abs(corners[i][1] - corners[j][1])) >= side
            for j in chosen
        )
        if weights[i] > 0 and apart and len(chosen) < WINDOWS:
            chosen.append(int(i))
    if not chosen:
        return None
    windows = np.zeros((WINDOWS, side, side, 3), np.uint8)
    counts = np.zeros(WINDOWS, np.float32)
    for k, i in enumerate(chosen):
        y, x = corners[i]
        windows[k], counts[k] = pixels[y : y + side, x : x + side], 1.0
    found = _compiled_joint_motion()(windows, counts, np.float32(noise))
    return jax.tree.map(np.asarray, found)


@functools.cache
def _compiled_joint_motion():
    # Fourier transforms of jaxlib 0.11.2 that fill XLA's threads on a CPU wait for each other for
    # ever. Each photograph has a thread here anyway, and its transforms need no more.
    options = {"xla_cpu_multi_thread_eigen": False} if jax.default_backend() == "cpu" else None
    return jax.jit(_joint_motion, compiler_options=options)


def _joint_motion(windows, counts, noise):
    each = partial(direction_lengths, noise_variance=noise)
    both = map_images(lambda window: each(grey_levels(to_float(window))), windows)
    share = counts / counts.sum()
    return deepest(tuple(jnp.tensordot(share, x, 1) for x in both))
