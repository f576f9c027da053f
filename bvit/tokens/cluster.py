"""`cluster:0.5`: tokens that have become alike share one, by Ward's method in a few blocks."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bvit.tokens import agglomerate
from bvit.tokens.joining import JoiningPolicy, join_clusters, sizes
from bvit.tokens.policy import Attention, Tokens, ViTShape

# Where the last stage would leave fewer of the patches, all stages begin earlier.
LEAST = 0.1


@dataclasses.dataclass(frozen=True)
class Cluster(JoiningPolicy):
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

    def blocks(self, vit: ViTShape) -> tuple[int, ...]:
        """The blocks of the stages: for a small share of the operations, earlier ones."""
        blocks = super().blocks(vit)
        if self.at or not isinstance(self.budget, float):
            return blocks
        while blocks[0] > 1:
            last = dataclasses.replace(self, at=blocks).left(vit)[blocks[-1]]
            if last >= LEAST * vit.patches:
                break
            blocks = tuple(block - 1 for block in blocks)
        return blocks

    def reads_weights(self, block: int, vit: ViTShape) -> bool:
        """In the blocks of its stages."""
        return block in self.blocks(vit)

    def join(self, tokens: Tokens, attention: Attention, count: int, vit: ViTShape) -> Tokens:
        """Joins by Ward's criterion, weighted by size and attention received."""
        size = sizes(tokens)[:, vit.prefix :]
        received = (
            attention.needed_weights().astype(jnp.float32).mean(axis=(1, 2))[:, vit.prefix :] / size
        )
        received = jax.lax.stop_gradient(received / received.mean(axis=1, keepdims=True))
        patches = tokens.x[:, vit.prefix :]
        cluster = agglomerate.assign(patches, size * jnp.sqrt(received), count)
        return join_clusters(tokens, cluster, count, size * received, vit, keep_norm=True)
