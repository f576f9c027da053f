"""Pictures of what a policy does with each patch, drawn over the photographs."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

# Patches that are left out are darkened to this share.
DIMMED = 0.3
# Frames: of patches that are left out, and of merged blocks of 2×2 and 4×4 patches.
FRAMES = {-1: (1.0, 0.35, 0.1), 1: (0.1, 0.8, 0.9), 2: (0.95, 0.3, 0.9)}
# Lines between clusters of patches that share a token.
LINES = (0.1, 0.8, 0.9)
# Small pictures are enlarged to at least this side, so that a 64 px crop can be looked at.
MIN_SIDE = 192


def draw_levels(
    image: Float[np.ndarray, "h w 3"], level: Int[np.ndarray, "hp wp"]
) -> Float[np.ndarray, "h2 w2 3"]:
    """Draws what a policy shows of a picture.

    Args:
      image: pixels in [0, 1].
      level: of each patch, as `bvit.tokens.inputs.shown_levels` gives it: patches at -1 are drawn
        dark, merged blocks at the resolution that is left of them, each with a frame.

    Returns:
      The picture, enlarged if it is small.
    """
    patch = image.shape[0] // level.shape[0]
    zoom = max(1, -(-MIN_SIDE // image.shape[0]))
    drawn = _enlarge(image.astype(np.float32), zoom)
    shown = _enlarge(level, patch * zoom)
    for value, colour in FRAMES.items():
        here = shown == value
        if not here.any():
            continue
        block = patch * zoom * 2 ** max(value, 0)
        seen = image * DIMMED if value < 0 else _coarsen(image, 2**value)
        drawn[here] = _enlarge(seen, zoom)[here]
        rows, columns = np.indices(shown.shape)
        drawn[here & ((rows % block == 0) | (columns % block == 0))] = colour
    return drawn


def draw_clusters(
    image: Float[np.ndarray, "h w 3"], cluster: Int[np.ndarray, "hp wp"]
) -> Float[np.ndarray, "h2 w2 3"]:
    """Draws lines between patches that do not share a token.

    Args:
      image: pixels in [0, 1].
      cluster: of each patch. Those of one cluster need not touch.

    Returns:
      The picture, enlarged if it is small.
    """
    zoom = max(1, -(-MIN_SIDE // image.shape[0]))
    drawn = _enlarge(image.astype(np.float32), zoom)
    number = _enlarge(cluster, image.shape[0] // cluster.shape[0] * zoom)
    edge = np.zeros(number.shape, bool)
    edge[1:] |= number[1:] != number[:-1]
    edge[:, 1:] |= number[:, 1:] != number[:, :-1]
    drawn[edge] = LINES
    return drawn


def sheet(
    image: Float[np.ndarray, "n h w 3"], levels: Mapping[str, Int[np.ndarray, "n hp wp"]]
) -> Figure:
    """Pictures side by side: as they are, then a row for each policy, with its name."""
    untouched = (
        np.zeros_like(next(iter(levels.values()))) if levels else np.zeros((len(image), 1, 1))
    )
    rows = {"picture": untouched, **levels}
    figure = Figure(figsize=(1.6 * len(image) + 0.6, 1.6 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(image), squeeze=False)
    for strip, (name, level) in zip(axes, rows.items(), strict=True):
        for cell, one, shown in zip(strip, image, level, strict=True):
            cell.imshow(np.clip(draw_levels(one, shown), 0, 1), interpolation="nearest")
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set_visible(False)
        strip[0].set_ylabel(name)
    return figure


def _enlarge(array: np.ndarray, times: int) -> np.ndarray:
    return array.repeat(times, axis=0).repeat(times, axis=1)


def _coarsen(image: np.ndarray, factor: int) -> np.ndarray:
    """The picture at 1/factor of its resolution, at its own size; incomplete blocks stay."""
    height, width = (side // factor * factor for side in image.shape[:2])
    blocks = image[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    coarse = image.copy()
    coarse[:height, :width] = _enlarge(blocks.mean(axis=(1, 3)), factor)
    return coarse
