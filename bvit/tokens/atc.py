"""`atc:0.5`: agglomerative clustering of keys (Haurum et al. 2024, arXiv:2409.11923)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from bvit.tokens import agglomerate
from bvit.tokens.joining import JoiningPolicy, join_clusters, sizes
from bvit.tokens.policy import Attention, Tokens, ViTShape


@dataclasses.dataclass(frozen=True)
class Atc(JoiningPolicy):
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

    def join(self, tokens: Tokens, attention: Attention, count: int, vit: ViTShape) -> Tokens:
        """Joins by the distance of the keys."""
        size = sizes(tokens)[:, vit.prefix :]
        keys = attention.key.mean(axis=2)[:, vit.prefix :]
        cluster = agglomerate.assign(keys, jnp.ones_like(size), count, linkage=self.linkage)
        return join_clusters(tokens, cluster, count, size, vit)
