"""`atc:0.5`: agglomerative clustering of keys (Haurum et al. 2024, arXiv:2409.11923)."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp

from bvit.tokens import agglomerate
from bvit.tokens.cluster import join, joining_operations, split
from bvit.tokens.policy import Attention, Tokens, ViTShape
from bvit.tokens.stages import StagedPolicy


@dataclasses.dataclass(frozen=True)
class Atc(StagedPolicy):
    """Joins tokens by the cosine distance of their keys, averaged over heads: ATC.

    Section 3 of "Agglomerative Token Clustering": the distance of two clusters is that of their
    tokens, one of each, the mean (equation 3), greatest or least over pairs. Tokens count once each
    in it; a cluster becomes their mean, weighted by size. In three stages at a constant keep rate,
    as published for blocks 4, 7 and 10 of 12.

    Attributes:
      linkage: "average", "complete" or "single".
    """

    name: ClassVar[str] = "atc"
    fractions: ClassVar[tuple[float, ...]] = (4 / 12, 7 / 12, 10 / 12)

    linkage: agglomerate.Linkage = "average"

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
        keys = attention.key.mean(axis=2)[:, vit.prefix :]
        cluster = agglomerate.assign(keys, jnp.ones_like(size), count, linkage=self.linkage)
        return join(tokens, cluster, count, own, patches, size, size, keep_norm=False)
