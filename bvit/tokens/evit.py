"""`evit:0.5`: pruning by the class token's attention (Liang et al. 2022, arXiv:2202.07800)."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp

from bvit.tokens.policy import Attention, Tokens, ViTShape
from bvit.tokens.ranking import ranks
from bvit.tokens.stages import StagedPolicy


@dataclasses.dataclass(frozen=True)
class Evit(StagedPolicy):
    """Keeps the tokens that the class token attends to most, and fuses the others: EViT.

    Section 3.2 of "Not All Patches Are What You Need": attention is the mean over heads; the others
    become one token, their sum weighted by that attention (equation 4). The count of a stage
    includes the fused token. Published for blocks 4, 7 and 10 of 12.
    """

    name: ClassVar[str] = "evit"
    fractions: ClassVar[tuple[float, ...]] = (4 / 12, 7 / 12, 10 / 12)

    def reads_weights(self, block: int, vit: ViTShape) -> bool:
        """In the blocks of its stages."""
        return block in self.blocks(vit)

    def counts(self, vit: ViTShape) -> tuple[int, ...]:
        """As the base class; the ViT must have a class token.

        Raises:
          ValueError: it has none.
        """
        if not vit.has_class_token:
            raise ValueError(
                'policy evit needs the attention of a class token: use a ViT with pool="cls", or '
                "policy cluster."
            )
        return super().counts(vit)

    def reduce(
        self, tokens: Tokens, attention: Attention, block: int, *, plan: Any, vit: ViTShape
    ) -> Tokens:
        """Prunes and fuses tokens in the blocks of its stages."""
        count = self.left(vit).get(block)
        patches = tokens.x[:, vit.prefix :]
        if count is None or count >= patches.shape[1]:
            return tokens
        looked_at = attention.needed_weights()[:, :, 0, vit.prefix :].mean(axis=1)
        rank = ranks(looked_at)
        kept = jnp.argsort(rank, axis=1)[:, : count - 1]
        fused = jnp.where(rank >= count - 1, looked_at, 0).astype(patches.dtype)
        x = jnp.concatenate(
            [
                tokens.x[:, : vit.prefix],
                jnp.take_along_axis(patches, kept[..., None], axis=1),
                jnp.einsum("nt,ntd->nd", fused, patches)[:, None],
            ],
            axis=1,
        )
        return Tokens(x, None, None, tokens.moved(jnp.minimum(rank, count - 1)))
