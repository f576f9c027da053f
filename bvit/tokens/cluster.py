"""`cluster:0.5`: tokens that have become alike share one, by Ward's method (1963)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from bvit.image.patches import nearest
from bvit.tokens.policy import Attention, BudgetPolicy, Tokens, ViTShape, with_prefix
from bvit.tokens.ranking import best

# Tokens are joined inside regions of about so many patches on a side: enough to make one token of a
# stretch of sky, and few enough for the steps of joining, which come one after another. Of blurred
# pictures 4 kept less, at a third of the tokens; the whole image kept no more, and took longer.
REGION = 6


@dataclasses.dataclass(frozen=True)
class Cluster(BudgetPolicy):
    """Joins tokens into clusters in block `at`; the tokens of a cluster become their mean."""

    name: ClassVar[str] = "cluster"

    at: int = 1

    def possible(self, vit: ViTShape) -> range:
        """From one cluster for each region to every patch."""
        return budgets(vit.grid)

    def reduce(
        self, tokens: Tokens, attention: Attention, block: int, *, plan: Any, vit: ViTShape
    ) -> Tokens:
        """Joins tokens in block `at`."""
        if block != self.at:
            return tokens
        count = self.num_tokens(vit)
        own, patches = tokens.x[:, : vit.prefix], tokens.x[:, vit.prefix :]
        cluster = assign(patches, grid=vit.grid, count=count)
        patches, size = merge(patches, jnp.ones(patches.shape[:2]), cluster, count)
        x = jnp.concatenate([own, patches], axis=1)
        return Tokens(x, with_prefix(size, vit.prefix), None, tokens.moved(cluster))


def region_shape(grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a region: what divides the grid most evenly, about `REGION` each."""
    rows, columns = (-(-side // max(1, round(side / REGION))) for side in grid)
    return rows, columns


def num_regions(grid: tuple[int, int]) -> tuple[int, int]:
    """How many regions a grid has, downwards and across."""
    down, across = (-(-side // size) for side, size in zip(grid, region_shape(grid), strict=True))
    return down, across


def budgets(grid: tuple[int, int]) -> range:
    """How many tokens a grid of patches can be joined into: from one for each region to all."""
    return range(math.prod(num_regions(grid)), grid[0] * grid[1] + 1)


def assign(
    features: Float[Array, "n t d"], *, grid: tuple[int, int], count: int
) -> Int[Array, "n t"]:
    """Joins neighbouring tokens until `count` are left, those first of which least is lost.

    Each step joins the two clusters of a region (`region_shape`) whose joining adds least to the
    squared distance of all tokens to their cluster's mean (Ward 1963, "Hierarchical grouping to
    optimize an objective function", JASA 58, by the recurrence of Lance and Williams 1967). The
    regions compete: where tokens differ they stay apart, and blurry or plain ones become few.

    Args:
      features: of the patches in raster order, by which they are alike or not. No gradient passes.
      grid: rows and columns of patches; where regions do not divide it, the last ones are smaller.
        Static.
      count: clusters to leave, one of `budgets(grid)`. Static.

    Returns:
      The cluster of each patch, 0 to count - 1; each has at least one.

    Raises:
      ValueError: a count that the grid can't give, or features that do not lie on it.
    """
    _check(features.shape, grid, count)
    n, patches, _ = features.shape
    blocks = _to_regions(jax.lax.stop_gradient(features).astype(jnp.float32), grid)
    exists = _to_regions(jnp.ones((1, patches, 1), bool), grid)[..., 0]
    added, joined = _each_region(_join)(_distances(blocks, exists))
    # Joining adds ever more inside a region, so the least of all are each region's first ones.
    taken = best(-added.reshape(n, -1), patches - count)
    steps = taken.reshape(added.shape).sum(-1)
    speaker = _each_region(_speakers)(joined, steps)
    speaks = exists & (speaker == jnp.arange(speaker.shape[-1]))
    number = jnp.cumsum(speaks.reshape(n, -1), axis=-1).reshape(speaks.shape) - 1
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
    possible, (rows, columns) = budgets(grid), region_shape(grid)
    if count not in possible:
        raise ValueError(
            f"a grid of {grid[0]}×{grid[1]} patches can be joined into {possible[0]} to "
            f"{possible[-1]} clusters, at least one for each region of {rows}×{columns}: got "
            f"{count}; use {nearest(count, possible)}."
        )


def _each_region(function: Callable) -> Callable:
    """Maps over images and regions."""
    return jax.vmap(jax.vmap(function))


def _to_regions(x: Shaped[Array, "n t d"], grid: tuple[int, int]) -> Shaped[Array, "n r p d"]:
    """Sorts patches by region; places beyond the grid's edges are filled with zeros."""
    n, _, d = x.shape
    (down, across), (rows, columns) = num_regions(grid), region_shape(grid)
    edges = (0, down * rows - grid[0]), (0, across * columns - grid[1])
    x = jnp.pad(x.reshape(n, *grid, d), [(0, 0), *edges, (0, 0)])
    x = x.reshape(n, down, rows, across, columns, d).swapaxes(2, 3)
    return x.reshape(n, down * across, rows * columns, d)


def _from_regions(x: Shaped[Array, "n r p"], grid: tuple[int, int]) -> Shaped[Array, "n t"]:
    (down, across), (rows, columns) = num_regions(grid), region_shape(grid)
    x = x.reshape(-1, down, across, rows, columns).swapaxes(2, 3)
    x = x.reshape(-1, down * rows, across * columns)
    return x[:, : grid[0], : grid[1]].reshape(len(x), -1)


def _distances(
    blocks: Float[Array, "n r p d"], exists: Bool[Array, "1 r p"]
) -> Float[Array, "n r p p"]:
    """What joining each two patches of a region would add to the sum of squares; inf for none."""
    blocks = blocks - blocks.mean(axis=2, keepdims=True)  # the products below cancel less
    square = jnp.sum(blocks**2, axis=-1)
    product = jnp.einsum("nrid,nrjd->nrij", blocks, blocks)
    halves = jnp.maximum(square[..., :, None] + square[..., None, :] - 2 * product, 0) / 2
    two = exists[..., :, None] & exists[..., None, :] & ~jnp.eye(blocks.shape[2], dtype=bool)
    return jnp.where(two, halves, jnp.inf)


_Joined = tuple[Int[Array, " steps"], Int[Array, " steps"]]


def _join(distance: Float[Array, "p p"]) -> tuple[Float[Array, " steps"], _Joined]:
    """Joins two clusters of one region at a time until one is left, in p - 1 steps.

    Returns:
      What each step added, and which two it joined, by the places that spoke for them: the first
      of them speaks for both from then on.
    """
    place = jnp.arange(len(distance))

    def first(values: Array, wanted: Array) -> Array:
        return jnp.min(jnp.where(values == wanted, place, len(place) - 1))

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        distance, size = carry
        nearest = distance.min(-1)
        least = nearest.min()
        a = first(nearest, least)
        b = first(distance[a], least)
        row = (size[a] + size) * distance[a] + (size[b] + size) * distance[b]
        row = (row - size * jnp.where(jnp.isfinite(least), least, 0)) / (size[a] + size[b] + size)
        row = row.at[b].set(jnp.inf)
        distance = distance.at[a].set(row).at[:, a].set(row)
        distance = distance.at[b].set(jnp.inf).at[:, b].set(jnp.inf)
        return (distance, size.at[a].add(size[b])), (least, a, b)

    start = distance, jnp.ones(len(place))
    _, (added, a, b) = jax.lax.scan(step, start, length=len(place) - 1)
    return added, (a, b)


def _speakers(joined: _Joined, steps: Int[Array, ""]) -> Int[Array, " p"]:
    """For each patch of a region, the place that speaks for its cluster after so many steps."""
    count = len(joined[0])

    def step(speaker: Array, taken: tuple[Array, ...]) -> tuple[Array, None]:
        i, a, b = taken
        return jnp.where((speaker == b) & (i < steps), a, speaker), None

    speaker, _ = jax.lax.scan(step, jnp.arange(count + 1), (jnp.arange(count), *joined))
    return speaker
