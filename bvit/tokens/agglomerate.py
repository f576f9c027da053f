"""Agglomerative clustering of tokens on the device: which are so alike that one can stand for them.

The method joins the two closest clusters, again and again (Ward 1963, "Hierarchical grouping to
optimize an objective function", JASA 58; the recurrence of Lance and Williams 1967). One join after
another would be a chain of as many steps as tokens go. So each round here joins all pairs of
clusters that are each other's nearest (Murtagh 1983, "A survey of recent advances in hierarchical
clustering algorithms"). All linkages here are reducible: no join brings two other clusters closer.
The pairs of a round are therefore joins of the step-by-step method's tree. Rounds end when the
cheapest joins of that tree are known; joins beyond them are undone. The result is that of the
step-by-step method, apart from ties.
"""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Linkage = Literal["ward", "average", "complete", "single"]


def assign(
    features: Float[Array, "n t d"],
    weight: Float[Array, "n t"],
    count: int,
    *,
    linkage: Linkage = "ward",
) -> Int[Array, "n t"]:
    """Joins the closest tokens until `count` clusters are left.

    Args:
      features: by which tokens are alike. No gradient passes; computed in float32.
      weight: positive; how much each token counts. "complete" and "single" do not use it.
      count: clusters to leave, 1 to t. Static.
      linkage: what a join costs. Static. "ward": what it adds to the weighted squared distance of
        all tokens from the mean of their cluster. The others: one minus the cosine of two tokens,
        one of each cluster, the "average" over pairs, the greatest ("complete") or the least
        ("single").

    Returns:
      The cluster of each token, 0 to count - 1, numbered by their first tokens; none is empty.

    Raises:
      ValueError: an unknown linkage, or a count that can't be.
    """
    tokens = features.shape[1]
    if not 1 <= count <= tokens:
        raise ValueError(f"count must be 1 to {tokens}, the number of tokens: got {count}.")
    into, cost = _trees(features, weight, linkage, tokens - count)
    place = jnp.arange(tokens, dtype=jnp.int32)
    # Costs never fall along the tree, so the cheapest joins are complete subtrees. How many joins
    # come before each is counted, which takes less time than sorting.
    before = (cost[:, :, None] < cost[:, None]) | (
        (cost[:, :, None] == cost[:, None]) & (place[:, None] < place)
    )
    root = jnp.where(before.sum(axis=1) < tokens - count, into, place)
    for _ in range(max(tokens - 1, 1).bit_length()):  # a token may have joined one that joined
        root = jnp.take_along_axis(root, root, axis=-1)
    number = jnp.cumsum(root == place, axis=-1, dtype=jnp.int32) - 1
    return jnp.take_along_axis(number, root, axis=-1)


def operations(tokens: int, width: int, rounds: int = 9) -> float:
    """Floating-point operations of `assign` for one image: distances, and rounds of updates."""
    return 2.0 * tokens**2 * width + 20.0 * rounds * tokens**2


_State = tuple[Array, Array, Array, Array, Array]
_Joins = tuple[Int[Array, "*n t"], Float[Array, "*n t"]]  # into which token, and at what cost


def _trees(
    features: Float[Array, "n t d"], weight: Float[Array, "n t"], linkage: Linkage, joins: int
) -> _Joins:
    if linkage not in get_args(Linkage):
        raise ValueError(f"linkage must be one of {', '.join(get_args(Linkage))}: got {linkage!r}.")
    weight = jax.lax.stop_gradient(weight).astype(jnp.float32)
    distance = _distances(jax.lax.stop_gradient(features).astype(jnp.float32), weight, linkage)
    # Under shard_map the weights may be the same on all devices, while the distances are not.
    weight = weight * jnp.ones_like(distance[:, 0])
    grow = functools.partial(_tree, linkage=linkage, joins=joins)
    # On a CPU the matrix of one image stays in the cache: ten times as fast as all at once
    # (196 tokens, batch 64: 82 ms and 856 ms).
    return jax.lax.platform_dependent(
        distance,
        weight,
        cpu=lambda *batch: jax.lax.map(lambda one: grow(*one), batch),
        default=lambda *batch: jax.vmap(grow)(*batch),
    )


def _distances(
    features: Float[Array, "n t d"], weight: Float[Array, "n t"], linkage: Linkage
) -> Float[Array, "n t t"]:
    """What joining each two tokens costs, [n, t, t]; infinite for a token and itself."""
    if linkage == "ward":
        features = features - features.mean(axis=1, keepdims=True)  # less cancellation below
        square = jnp.sum(features**2, axis=-1)
        product = jnp.einsum("nid,njd->nij", features, features)
        between = jnp.maximum(square[:, :, None] + square[:, None] - 2 * product, 0)
        row, column = weight[:, :, None], weight[:, None]
        distance = between * (row * column / (row + column))
    else:
        norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
        features = features / jnp.maximum(norm, 1e-12)
        distance = 1 - jnp.einsum("nid,njd->nij", features, features)
    return jnp.where(jnp.eye(features.shape[1], dtype=bool), jnp.inf, distance)


def _joined(
    one: Float[Array, "t t"],
    other: Float[Array, "t t"],
    cost: Float[Array, "t 1"],
    weight_one: Float[Array, "t 1"],
    weight_other: Float[Array, "t 1"],
    weight: Float[Array, " t"],
    linkage: Linkage,
) -> Float[Array, "t t"]:
    """The distance of two joined clusters from a third (Lance and Williams 1967)."""
    if linkage == "complete":
        return jnp.maximum(one, other)
    if linkage == "single":
        return jnp.minimum(one, other)
    if linkage == "average":
        return (weight_one * one + weight_other * other) / (weight_one + weight_other)
    total = weight_one + weight_other + weight
    return ((weight_one + weight) * one + (weight_other + weight) * other - weight * cost) / total


def _tree(
    distance: Float[Array, "t t"], weight: Float[Array, " t"], *, linkage: Linkage, joins: int
) -> _Joins:
    """The joins of one image: into which token each goes, and at what cost (infinite: never).

    The cheapest `joins` of the whole tree are among them.
    """
    place = jnp.arange(len(weight), dtype=jnp.int32)

    def turn(carry: _State) -> _State:
        distance, weight, into, cost, _ = carry
        # Along columns, which is faster on a CPU; the matrix is symmetric.
        low = distance.min(0)
        # The first of equally near ones.
        nearest = jnp.where(distance == low, place[:, None], place[-1]).min(0)
        pair = (nearest[nearest] == place) & jnp.isfinite(low)
        stays, goes = pair & (place < nearest), pair & (place > nearest)
        paid = jnp.where(stays, low, 0)[:, None]
        gained = jnp.where(stays, weight[nearest], 0)
        left = jnp.where(goes, 0, weight + gained)

        def rows(matrix: Array, others: Array) -> Array:
            new = _joined(
                matrix, matrix[nearest], paid, weight[:, None], gained[:, None], others, linkage
            )
            return jnp.where(stays[:, None], new, matrix)

        # Joined clusters to all as they were; then, transposed, to the joined ones. There is always
        # a pair, but a branch makes XLA's CPU compiler transpose the matrix. It would otherwise
        # gather rows with strides, and take five times as long.
        once = jax.lax.cond(pair.any(), lambda: rows(distance, weight).T, lambda: distance)
        distance = rows(once, left)
        gone = goes[:, None] | goes | (place[:, None] == place)
        distance = jnp.where(gone, jnp.inf, distance)
        into, cost = jnp.where(goes, nearest, into), jnp.where(goes, low, cost)
        # Later joins cost no less than the least distance that is left.
        return distance, left, into, cost, jnp.sum(cost <= distance.min()) < joins

    # All made of the inputs, so that under shard_map they vary over the same axes.
    zero = jnp.zeros_like(weight)
    start = (
        distance,
        weight,
        zero.astype(jnp.int32) + place,
        zero + jnp.inf,
        jnp.isfinite(weight.min()) & (joins > 0),
    )
    _, _, into, cost, _ = jax.lax.while_loop(lambda carry: carry[-1], turn, start)
    return into, cost
