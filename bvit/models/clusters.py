"""Which neighbouring tokens are so alike that one can stand for them, by Ward's method (1963)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from bvit.models import pyramid

# Tokens are joined inside regions of so many patches on a side: far enough to make one of a stretch
# of sky, and few enough that the steps of joining, one after another, are short.
REGION = 4
PLACES = REGION**2


def budgets(grid: tuple[int, int]) -> range:
    """How many tokens a grid of patches can be joined into: from one for each region to all."""
    regions = -(-grid[0] // REGION) * -(-grid[1] // REGION)
    return range(regions, grid[0] * grid[1] + 1)


def assign(
    features: Float[Array, "n t d"], *, grid: tuple[int, int], count: int
) -> Int[Array, "n t"]:
    """Joins neighbouring tokens until `count` are left, those first of which least is lost.

    Each step joins the two clusters of a region of 4×4 patches whose joining adds least to the
    squared distance of all tokens to their cluster's mean (Ward 1963, "Hierarchical grouping to
    optimize an objective function", JASA 58, by the recurrence of Lance and Williams 1967). The
    regions compete: where tokens differ they stay apart, and blurry or plain ones become few.

    Args:
      features: of the patches in raster order, by which they are alike or not. No gradient passes.
      grid: rows and columns of patches; where no multiple of 4, the last regions are smaller.
        Static.
      count: clusters to leave, one of `budgets(grid)`. Static.

    Returns:
      The cluster of each patch, 0 to count - 1; each has at least one.

    Raises:
      ValueError: a count that the grid can't give, or features that do not lie on it.
    """
    _check(features.shape, grid, count)
    blocks = _to_regions(jax.lax.stop_gradient(features).astype(jnp.float32), grid)
    exists = _to_regions(np.ones((1, features.shape[1], 1), bool), grid)[..., 0]
    heights, joined = _join(_distances(blocks, exists))
    # Joining costs ever more inside a region, so the cheapest of all are each region's first ones.
    cheapest = pyramid.ranks(-heights.reshape(len(blocks), -1)) < features.shape[1] - count
    steps = cheapest.reshape(heights.shape).sum(-1)
    speaker = _speakers(joined, steps)
    speaks = exists & (speaker == jnp.arange(PLACES))
    number = jnp.cumsum(speaks.reshape(len(blocks), -1), axis=-1).reshape(speaks.shape) - 1
    return _from_regions(jnp.take_along_axis(number, speaker, axis=-1), grid)


def merge(
    x: Float[Array, "n t d"], size: Float[Array, "n t"], cluster: Int[Array, "n t"], count: int
) -> tuple[Float[Array, "n count d"], Float[Array, "n count"]]:
    """The means of clusters of tokens, weighted by size, and the clusters' sizes.

    Args:
      x: the tokens; differentiable.
      size: how many patches each stands for.
      cluster: of each token, 0 to count - 1.
      count: static.
    """
    weights = (cluster[:, None] == jnp.arange(count)[:, None]) * size[:, None]
    total = weights.sum(-1)
    shares = (weights / total[..., None]).astype(x.dtype)
    return jnp.einsum("nct,ntd->ncd", shares, x), total


def _check(shape: tuple[int, ...], grid: tuple[int, int], count: int) -> None:
    if shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f"features must be those of all {grid[0]}×{grid[1]} patches, [n, "
            f"{grid[0] * grid[1]}, d]: got shape {shape}."
        )
    check_count(grid, count)


def check_count(grid: tuple[int, int], count: int) -> None:
    """Raises a ValueError for a number of clusters that a grid can't be joined into."""
    possible = budgets(grid)
    if count not in possible:
        raise ValueError(
            f"a grid of {grid[0]}×{grid[1]} patches can be joined into {possible[0]} to "
            f"{possible[-1]} clusters, at least one for each region of {REGION}×{REGION}: got "
            f"{count}; use {min(max(count, possible[0]), possible[-1])}."
        )


def _to_regions(x: Shaped[Array, "n t d"], grid: tuple[int, int]) -> Shaped[Array, "n regions p d"]:
    """Sorts patches by region; places beyond the grid's edges are filled with zeros."""
    n, _, d = x.shape
    rows, columns = (-(-side // REGION) for side in grid)
    edges = [
        (0, regions * REGION - side) for regions, side in zip((rows, columns), grid, strict=True)
    ]
    pad = np.pad if isinstance(x, np.ndarray) else jnp.pad
    x = pad(x.reshape(n, *grid, d), [(0, 0), *edges, (0, 0)])
    x = x.reshape(n, rows, REGION, columns, REGION, d).swapaxes(2, 3)
    return x.reshape(n, rows * columns, PLACES, d)


def _from_regions(x: Shaped[Array, "n regions p"], grid: tuple[int, int]) -> Shaped[Array, "n t"]:
    rows, columns = (-(-side // REGION) for side in grid)
    x = x.reshape(len(x), rows, columns, REGION, REGION).swapaxes(2, 3)
    x = x.reshape(len(x), rows * REGION, columns * REGION)
    return x[:, : grid[0], : grid[1]].reshape(len(x), -1)


def _distances(
    blocks: Float[Array, "n regions p d"], exists: Bool[np.ndarray, "1 regions p"]
) -> Float[Array, "p p n regions"]:
    """What joining each two patches of a region would add to the sum of squares; inf for none."""
    blocks = blocks - blocks.mean(axis=2, keepdims=True)  # the products below cancel less
    square = jnp.sum(blocks**2, axis=-1)
    product = jnp.einsum("nrid,nrjd->nrij", blocks, blocks)
    halves = jnp.maximum(square[..., :, None] + square[..., None, :] - 2 * product, 0) / 2
    pairs = exists[..., :, None] & exists[..., None, :] & ~np.eye(PLACES, dtype=bool)
    # The patches' axes come first, so that a step runs over long rows.
    return jnp.moveaxis(jnp.where(pairs, halves, jnp.inf), (2, 3), (0, 1))


def _join(
    distance: Float[Array, "p p n regions"],
) -> tuple[Float[Array, "n regions p-1"], tuple[Int[Array, "p-1 n regions"], ...]]:
    """Joins two clusters of every region at a time until one is left in each.

    Returns:
      What each step added, and which two it joined: the places that spoke for them, the lower one
      first; it speaks for both from then on.
    """
    place = jnp.arange(PLACES).reshape(-1, 1, 1)
    flat = jnp.arange(PLACES**2).reshape(PLACES, PLACES, 1, 1)

    def step(carry, _):
        distance, size = carry
        lowest = distance.min((0, 1))
        first = jnp.min(jnp.where(distance == lowest, flat, PLACES**2), axis=(0, 1))
        a, b = first // PLACES, first % PLACES
        is_a, is_b = place == a, place == b
        row_a, row_b = (jnp.min(jnp.where(x[:, None], distance, jnp.inf), 0) for x in (is_a, is_b))
        size_a, size_b = (jnp.sum(jnp.where(x, size, 0), 0) for x in (is_a, is_b))
        shared = size * jnp.where(jnp.isfinite(lowest), lowest, 0)
        row = (size_a + size) * row_a + (size_b + size) * row_b - shared
        row /= size_a + size_b + size
        distance = jnp.where(is_a[:, None], row, jnp.where(is_a, row[:, None], distance))
        distance = jnp.where(is_b[:, None] | is_b, jnp.inf, distance)
        size = jnp.where(is_a, size_a + size_b, size)
        return (distance, size), (lowest, a, b)

    start = distance, jnp.ones(distance.shape[1:])
    _, (heights, a, b) = jax.lax.scan(step, start, length=PLACES - 1)
    return jnp.moveaxis(heights, 0, -1), (a, b)


def _speakers(
    joined: tuple[Int[Array, "p-1 n regions"], ...], steps: Int[Array, "n regions"]
) -> Int[Array, "n regions p"]:
    """For each patch, the place that speaks for its cluster after so many steps in each region."""

    def step(speaker, taken):
        i, a, b = taken
        gives_way = (speaker == b) & (i < steps)
        return jnp.where(gives_way, a, speaker), None

    start = jnp.broadcast_to(jnp.arange(PLACES)[:, None, None], (PLACES, *steps.shape))
    speaker, _ = jax.lax.scan(step, start, (jnp.arange(PLACES - 1), *joined))
    return jnp.moveaxis(speaker, 0, -1)
