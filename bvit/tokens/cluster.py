"""`cluster:0.5`: tokens that have become alike share one, by Ward's method in a few blocks."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bvit.tokens import agglomerate
from bvit.tokens.policy import Attention, Tokens, ViTShape
from bvit.tokens.stages import StagedPolicy

# Lengths under this are taken for it, so that gradients stay finite.
TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class Cluster(StagedPolicy):
    """Joins the tokens whose joining loses least, over the whole image.

    What is lost is Ward's criterion on the tokens between attention and MLP, each weighted by its
    size and by the square root of the attention that its patches receive. A cluster becomes the
    mean of its tokens, weighted by size and attention received, stretched to the mean of their
    norms.

    The nearest published relative is ATC (Haurum et al. 2024), which clusters keys by their cosine.
    The attention received as a weight, the tokens' own distance and the kept norm are new here, as
    is the exact joining on the device.
    """

    name: ClassVar[str] = "cluster"
    fractions: ClassVar[tuple[float, ...]] = (4 / 12, 5 / 12, 6 / 12, 7 / 12, 9 / 12)

    def reads_weights(self, block: int, vit: ViTShape) -> bool:
        """In the blocks of its stages."""
        return block in self.blocks(vit)

    def overhead(self, vit: ViTShape) -> float:
        """Distances, joining, and the means."""
        return joining_operations(self, vit)

    def reduce(
        self, tokens: Tokens, attention: Attention, block: int, *, plan: Any, vit: ViTShape
    ) -> Tokens:
        """Joins tokens in the blocks of its stages."""
        count = self.left(vit).get(block)
        if count is None:
            return tokens
        own, patches, size = split(tokens, vit)
        received = (
            attention.needed_weights().astype(jnp.float32).mean(axis=(1, 2))[:, vit.prefix :] / size
        )
        received = jax.lax.stop_gradient(received / received.mean(axis=1, keepdims=True))
        cluster = agglomerate.assign(patches, size * jnp.sqrt(received), count)
        return join(tokens, cluster, count, own, patches, size, size * received, keep_norm=True)


def split(
    tokens: Tokens, vit: ViTShape
) -> tuple[Float[Array, "n prefix d"], Float[Array, "n t d"], Float[Array, "n t"]]:
    """The prefix tokens; the patch tokens; and the sizes of these."""
    own, patches = tokens.x[:, : vit.prefix], tokens.x[:, vit.prefix :]
    size = jnp.ones(patches.shape[:2]) if tokens.size is None else tokens.size[:, vit.prefix :]
    return own, patches, size


def join(
    tokens: Tokens,
    cluster: Int[Array, "n t"],
    count: int,
    own: Float[Array, "n prefix d"],
    patches: Float[Array, "n t d"],
    size: Float[Array, "n t"],
    weight: Float[Array, "n t"],
    *,
    keep_norm: bool,
) -> Tokens:
    """Replaces the patch tokens by one for each cluster; differentiable in the tokens.

    Args:
      tokens: the tokens before joining. They carry `where`, which is updated.
      cluster: of each patch token, 0 to count - 1.
      count: clusters. Static.
      own: the prefix tokens.
      patches: the patch tokens.
      size: how many patches each stands for.
      weight: of each in the mean of its cluster.
      keep_norm: stretch the mean to the mean of the norms, for means of vectors of different
        directions are shorter than these. Static.
    """
    member = cluster[:, None] == jnp.arange(count)[:, None]
    sizes = jnp.sum(member * size[:, None], axis=-1)
    share = member * weight[:, None]
    share = share / share.sum(-1, keepdims=True)
    wide = patches.astype(jnp.float32)
    mean = jnp.einsum("nct,ntd->ncd", share, wide)
    if keep_norm:
        norm = jnp.einsum("nct,nt->nc", share, _norm(wide))
        mean = mean * (norm / _norm(mean))[..., None]
    x = jnp.concatenate([own, mean.astype(patches.dtype)], axis=1)
    sizes = jnp.pad(sizes, ((0, 0), (own.shape[1], 0)), constant_values=1)
    return Tokens(x, sizes, None, tokens.moved(cluster))


def joining_operations(policy: StagedPolicy, vit: ViTShape) -> float:
    """Operations of clustering and of the means, over all stages, for one image."""
    counts, total = policy.counts(vit), 0.0
    for before, after in zip(counts, counts[1:], strict=False):
        if after < before:
            total += agglomerate.operations(before, vit.width)
            total += 2.0 * before * after * vit.width
    return total


def _norm(x: Float[Array, "n t d"]) -> Float[Array, "n t"]:
    return jnp.sqrt(jnp.sum(x**2, axis=-1) + TINY)
