"""What the policies share that let one token stand for several: clusters, and pairs."""

import abc
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bvit.tokens import agglomerate
from bvit.tokens.policy import Attention, Tokens, ViTShape, with_prefix
from bvit.tokens.stages import StagedPolicy

# Lengths under this are taken for it, so that gradients stay finite.
TINY = 1e-12


class JoiningPolicy(StagedPolicy, abc.ABC):
    """Base of the policies that cluster the patch tokens in a few blocks."""

    @abc.abstractmethod
    def join(self, tokens: Tokens, attention: Attention, count: int, vit: ViTShape) -> Tokens:
        """Leaves `count` patch tokens."""

    def reduce(
        self, tokens: Tokens, attention: Attention, block: int, *, plan: Any, vit: ViTShape
    ) -> Tokens:
        """Joins tokens in the blocks of its stages."""
        count = self.left(vit).get(block)
        return tokens if count is None else self.join(tokens, attention, count, vit)

    def overhead(self, vit: ViTShape) -> float:
        """Distances, joining, and the means."""
        counts, total = self.counts(vit), 0.0
        for before, after in zip(counts, counts[1:], strict=False):
            if after < before:
                total += agglomerate.operations(before, vit.width)
                total += 2.0 * before * after * vit.width
        return total


class Pairs(NamedTuple):
    """Which tokens of each image are merged; all but `partner` are places among its t = a+b+r.

    Attributes:
      rest: the tokens that nothing goes into, the prefix tokens first.
      stays: the tokens that others may go into.
      goes: the tokens that go.
      partner: the place in `stays` of the token that each goes into.
    """

    rest: Int[Array, "n a"]
    stays: Int[Array, "n b"]
    goes: Int[Array, "n r"]
    partner: Int[Array, "n r"]


def sizes(tokens: Tokens) -> Float[Array, "n t"]:
    """How many patches each token stands for, the prefix tokens included."""
    return jnp.ones(tokens.x.shape[:2]) if tokens.size is None else tokens.size


def join_clusters(
    tokens: Tokens,
    cluster: Int[Array, "n t"],
    count: int,
    weight: Float[Array, "n t"],
    vit: ViTShape,
    *,
    keep_norm: bool = False,
) -> Tokens:
    """Replaces the patch tokens by one for each cluster; differentiable in the tokens.

    Args:
      tokens: the tokens before joining.
      cluster: of each patch token, 0 to count - 1.
      count: clusters. Static.
      weight: of each patch token in the mean of its cluster.
      vit: the ViT.
      keep_norm: stretch each mean to the mean norm of its tokens; averaging vectors of different
        directions makes them shorter. Static.
    """
    own, patches = tokens.x[:, : vit.prefix], tokens.x[:, vit.prefix :]
    member = cluster[:, None] == jnp.arange(count)[:, None]
    size = jnp.sum(member * sizes(tokens)[:, None, vit.prefix :], axis=-1)
    share = member * weight[:, None]
    share = share / share.sum(-1, keepdims=True)
    wide = patches.astype(jnp.float32)
    mean = jnp.einsum("nct,ntd->ncd", share, wide)
    if keep_norm:
        norm = jnp.einsum("nct,nt->nc", share, _norm(wide))
        mean = mean * (norm / _norm(mean))[..., None]
    x = jnp.concatenate([own, mean.astype(patches.dtype)], axis=1)
    return Tokens(x, with_prefix(size, vit.prefix), None, tokens.moved(cluster))


def join_pairs(tokens: Tokens, pairs: Pairs, vit: ViTShape) -> Tokens:
    """Averages tokens into their partners, weighted by size; differentiable in the tokens.

    Leaves `rest`, which begins with the prefix tokens, and then `stays`.
    """
    rest, stays, goes, partner = pairs
    size = sizes(tokens)

    def take(values: Array, index: Array) -> Array:
        return jnp.take_along_axis(values, index, axis=1)

    def weighted(index: Array) -> Array:
        x = take(tokens.x, index[..., None])
        return x.astype(jnp.float32) * take(size, index)[..., None]

    into = partner[:, None] == jnp.arange(stays.shape[1])[:, None]
    total = weighted(stays) + jnp.einsum("nbr,nrd->nbd", into.astype(jnp.float32), weighted(goes))
    grown = take(size, stays) + jnp.sum(into * take(size, goes)[:, None], axis=-1)
    mean = (total / grown[..., None]).astype(tokens.x.dtype)
    x = jnp.concatenate([take(tokens.x, rest[..., None]), mean], axis=1)
    size = jnp.concatenate([take(size, rest), grown], axis=1)
    number = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    number = jnp.concatenate([number, rest.shape[1] + partner], axis=1)
    place = jnp.argsort(jnp.concatenate([rest, stays, goes], axis=1), axis=1)
    return Tokens(x, size, None, tokens.moved(take(number, place)[:, vit.prefix :] - vit.prefix))


def _norm(x: Float[Array, "n t d"]) -> Float[Array, "n t"]:
    return jnp.sqrt(jnp.sum(x**2, axis=-1) + TINY)
