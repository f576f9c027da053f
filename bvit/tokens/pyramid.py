"""The pyramid of tiles that mixed-resolution tokens come from, and which of its blocks to split.

Level 0 holds the patches of the image, level 1 those of the image at half resolution, each of which
shows a block of 2×2 patches, level 2 those at a quarter. A grid's odd last row or column belongs to
no block, and so has no tile on the next level. Tiles are numbered in raster order, level 0 first.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from bvit.image.focus_measures import FocusMeasure
from bvit.image.patches import block_values, halve, patchify

# Tokens that showing a block of 2×2 at the finer level costs, beyond the one it is merged into.
SPLIT_COST = 3


def level_grids(grid: tuple[int, int], levels: int) -> list[tuple[int, int]]:
    """Rows and columns of tiles at each level, 0 first."""
    return [(grid[0] >> level, grid[1] >> level) for level in range(levels + 1)]


def level_starts(grid: tuple[int, int], levels: int) -> list[int]:
    """The number of each level's first tile, and last the number of all tiles."""
    counts = [rows * columns for rows, columns in level_grids(grid, levels)]
    return np.cumsum([0, *counts]).tolist()


def fewest_tokens(grid: tuple[int, int], levels: int) -> int:
    """Tokens that are left when all is merged as far as it can be; each split adds SPLIT_COST."""
    patches, *blocks = (rows * columns for rows, columns in level_grids(grid, levels))
    return patches - SPLIT_COST * sum(blocks)


def build(
    image: Float[Array, "*b h w c"], grid: tuple[int, int], levels: int
) -> Float[Array, "*b tiles values"]:
    """All tiles of a pyramid over images, or over anything else that lies on the grid.

    Args:
      image: rows·s × columns·s pixels for some s: s = patch_size for an image, 1 for one vector a
        patch.
      grid: rows and columns of patches. Static.
      levels: levels above 0. Static.

    Returns:
      [*b, tiles, s·s·c], each tile flattened in the order (row, column, channel).
    """
    side = image.shape[-3] // grid[0]
    tiles = []
    for rows, columns in level_grids(grid, levels):
        tiles.append(patchify(image[..., : rows * side, : columns * side, :], side))
        image = halve(image)
    return jnp.concatenate(tiles, axis=-2)


def block_scores(
    image: Float[Array, "*b h w 3"],
    patch_size: int,
    levels: int,
    score: FocusMeasure,
    reduce: Callable[..., Array],
) -> list[Float[Array, "*b rows columns"]]:
    """The scores of each level's blocks, level 1 first: of their patches on the level below."""
    scores = []
    for _ in range(levels):
        patches = score(image, patch_size=patch_size)
        scores.append(reduce(block_values(patches, 2), axis=-1))
        image = halve(image)
    return scores


def choose_splits(
    scores: list[Float[Array, "*b rows columns"]], count: int, threshold: Float[Array, ""] | None
) -> list[Bool[Array, "*b rows columns"]]:
    """Which blocks are split, that is shown at the level below: the best `count` of all levels.

    Args:
      scores: of the blocks of level 1, or of levels 1 and 2. What level 2 loses counts four times,
        since its pixels are four times as large.
      count: how many blocks to split. Static.
      threshold: if given, of these only blocks that reach it, and blocks that one of them lies in.

    Returns:
      A bool for each block. A block inside one that is not split is not split either: its priority
      is capped by the outer block's, which comes first when they are equal.
    """
    sharp = [True if threshold is None else level >= threshold for level in scores]
    priorities = scores
    if len(scores) == 2:
        inner, outer = scores
        outer = _gain_per_split(4 * outer, block_values(inner, 2))
        priorities = [jnp.minimum(inner, enlarge(outer, 2, inner.shape[-2:], jnp.inf)), outer]
        if threshold is not None:
            sharp[1] |= block_values(sharp[0], 2).any(-1)
    outer_first = [
        jnp.where(is_sharp, priority, -jnp.inf).reshape(*priority.shape[:-2], -1)
        for priority, is_sharp in zip(priorities, sharp, strict=True)
    ][::-1]
    priority = jnp.concatenate(outer_first, axis=-1)
    split = (ranks(priority) < count) & (priority > -jnp.inf)
    ends = np.cumsum([level.shape[-1] for level in outer_first])[:-1]
    parts = jnp.split(split, ends, axis=-1)[::-1]
    return [part.reshape(level.shape) for part, level in zip(parts, scores, strict=True)]


def _gain_per_split(own, inside):
    """The best mean gain of splitting a block and then the first so many of the blocks in it.

    Taking blocks in this order is best for every budget at which no such group is cut in two.

    Args:
      own: [...], what splitting the block itself gains.
      inside: [..., 4], what splitting the blocks inside gains.
    """
    inside = jnp.sort(inside, axis=-1, descending=True)
    gains = jnp.cumsum(jnp.concatenate([own[..., None], inside], axis=-1), axis=-1)
    return (gains / jnp.arange(1, gains.shape[-1] + 1)).max(-1)


def leaves(
    splits: list[Bool[Array, "*b rows columns"]], grid: tuple[int, int]
) -> Bool[Array, "*b tiles"]:
    """True for the tiles that show the image, given which blocks of levels 1, 2, … are split."""
    chosen = []
    for level, shape in enumerate(level_grids(grid, len(splits))):
        shown = jnp.ones((*splits[0].shape[:-2], *shape), bool)
        if level < len(splits):
            # What belongs to no block of the next level up can't be merged there.
            shown &= enlarge(splits[level], 2, shape, True)
        if level > 0:
            shown &= ~splits[level - 1]
        chosen.append(shown.reshape(*shown.shape[:-2], -1))
    return jnp.concatenate(chosen, axis=-1)


def level_map(
    shown: Bool[Array, "*b tiles"], grid: tuple[int, int], levels: int
) -> Int[Array, "*b rows columns"]:
    """The level at which each patch is shown, given which tiles are; -1 where none shows it."""
    result = jnp.full((*shown.shape[:-1], *grid), -1)
    ends = level_starts(grid, levels)[1:-1]
    parts = jnp.split(shown, ends, axis=-1)
    for level, shape in enumerate(level_grids(grid, levels)):
        tiles = parts[level].reshape(*shown.shape[:-1], *shape)
        result = jnp.where(enlarge(tiles, 2**level, grid, False), level, result)
    return result


def enlarge(
    blocks: Shaped[Array, "*b r c"], side: int, shape: tuple[int, int], fill: float | bool
) -> Shaped[Array, "*b rows columns"]:
    """Repeats each value over side×side, and pads at the end with `fill` up to `shape`."""
    blocks = jnp.repeat(jnp.repeat(blocks, side, axis=-2), side, axis=-1)
    padding = [(0, want - have) for want, have in zip(shape, blocks.shape[-2:], strict=True)]
    return jnp.pad(blocks, [(0, 0)] * (blocks.ndim - 2) + padding, constant_values=fill)


def ranks(scores: Float[Array, "*b n"]) -> Int[Array, "*b n"]:
    """The place of each score, 0 for the highest; equal ones in the order they come."""
    order = jnp.argsort(scores, axis=-1, descending=True, stable=True)
    return jnp.argsort(order, axis=-1)
