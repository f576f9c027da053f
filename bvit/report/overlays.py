"""Images of what a policy does with each patch, drawn over the photographs."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure

from bvit.tokens import Keep

# Patches that no token shows are darkened to this share, in a frame of this colour.
DIMMED = 0.3
FRAME = (1.0, 0.35, 0.1)
# Lines between patches of which one shares its token.
LINES = (0.1, 0.8, 0.9)
# Colours of labels, and the letters after which they are cut so as not to overlap.
RIGHT, WRONG, MOST_LETTERS = "#1a7f37", "#c62828", 20
# Small images are enlarged to at least this side, so that a 64 px crop can be looked at.
MIN_SIDE = 192


def draw(
    image: Float[np.ndarray, "h w 3"], where: Int[np.ndarray, "hp wp"]
) -> Float[np.ndarray, "h2 w2 3"]:
    """Draws which patches share a token, and which none shows.

    Args:
      image: pixels in [0, 1].
      where: the number of the token that shows each patch, -1 for none. The patches of one token
        need not touch.

    Returns:
      The image, enlarged if it is small: patches without a token dark and framed, lines around
      patches that share a token.
    """
    zoom = max(1, -(-MIN_SIDE // image.shape[0]))
    drawn = image.astype(np.float32).repeat(zoom, axis=0).repeat(zoom, axis=1)
    side = image.shape[0] // where.shape[0] * zoom
    cells = patch_of_pixels(drawn.shape[:2], where.shape)
    drawn[shared_edges(where, cells)] = LINES
    rows, columns = np.indices(drawn.shape[:2])
    hidden = (where < 0)[cells]
    drawn[hidden] *= DIMMED
    drawn[hidden & ((rows % side == 0) | (columns % side == 0))] = FRAME
    return drawn


def patch_of_pixels(shape: tuple[int, ...], grid: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The row and the column of the patch that each pixel lies in, to index a grid with."""
    rows, columns = (
        np.arange(size) * count // size for size, count in zip(shape, grid, strict=True)
    )
    return rows[:, None], columns[None]


def shared_edges(
    where: Int[np.ndarray, "hp wp"], cells: tuple[np.ndarray, np.ndarray]
) -> Bool[np.ndarray, "h w"]:
    """The pixels along patches of which one shares its token with another.

    Args:
      where: as for `draw`.
      cells: of `patch_of_pixels`.
    """
    numbers, counts = np.unique(where, return_counts=True)
    shared = np.isin(where, numbers[counts > 1]) & (where >= 0)
    number, many = where[cells], shared[cells]
    edge = np.zeros(number.shape, bool)
    edge[1:] |= (number[1:] != number[:-1]) & (many[1:] | many[:-1])
    edge[:, 1:] |= (number[:, 1:] != number[:, :-1]) & (many[:, 1:] | many[:, :-1])
    return edge


def sheet(
    image: Float[np.ndarray, "n h w 3"],
    where: Mapping[str, Int[np.ndarray, "n hp wp"]],
    answers: Mapping[str, Sequence[str]],
    truth: Sequence[str],
) -> Figure:
    """Images side by side under their true classes, with a row for each policy.

    Args:
      image: pixels in [0, 1].
      where: policy → the token that shows each patch, as in `draw`; `keep`, which shows all, has
        none, and its row shows the images as they are.
      answers: policy → the label that it gives each image; green where it is right, red otherwise.
      truth: the true label of each image.
    """
    rows = [Keep().label, *where]
    figure = Figure(figsize=(1.6 * len(image) + 0.6, 1.85 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), len(image), squeeze=False)
    for strip, policy in zip(axes, rows, strict=True):
        given = answers.get(policy, [""] * len(image))
        for i, cell in enumerate(strip):
            drawn = draw(image[i], where[policy][i]) if policy in where else image[i]
            cell.imshow(np.clip(drawn, 0, 1), interpolation="antialiased")
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set_visible(False)
            color = RIGHT if given[i] == truth[i] else WRONG
            cell.set_xlabel(_short(given[i]), color=color, fontsize="small", labelpad=2)
        strip[0].set_ylabel(policy if policy in answers else "image")
    for cell, label in zip(axes[0], truth, strict=True):
        cell.set_title(_short(label), fontsize="small")
    return figure


def _short(label: str) -> str:
    return label if len(label) <= MOST_LETTERS else label[: MOST_LETTERS - 1] + "…"
