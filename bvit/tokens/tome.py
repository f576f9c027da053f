"""`tome:8`: each block merges 8 pairs of similar tokens (Bolya et al. 2023, arXiv:2210.09461)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bvit.tokens.joining import Pairs, join_pairs
from bvit.tokens.policy import Attention, Budget, Policy, Tokens, ViTShape, check_budget, resolve
from bvit.tokens.ranking import best


@dataclasses.dataclass(frozen=True)
class Tome(Policy):
    """Merges tokens by the similarity of their keys, in every block: ToMe.

    Attributes:
      budget: r, the pairs that each block merges, or a share of the operations of `keep`.
    """

    name: ClassVar[str] = "tome"

    budget: Budget

    def __post_init__(self) -> None:
        check_budget(self.budget, self.label)

    @property
    def label(self) -> str:
        """The policy as people type it."""
        return f"{self.name}:{self.budget}"

    def num_merged(self, vit: ViTShape) -> int:
        """Pairs that each block merges."""
        return resolve(self, range(1, vit.patches // 2 + 1), vit)

    def counts(self, vit: ViTShape) -> tuple[int, ...]:
        """Each block merges r, or half of the tokens that are left if they are fewer."""
        r, counts = self.num_merged(vit), [vit.patches]
        for _ in range(vit.depth):
            counts.append(counts[-1] - min(r, counts[-1] // 2))
        return tuple(counts)

    def match(self, keys: Float[Array, "n t d"], r: int, block: int, vit: ViTShape) -> Pairs:
        """Chooses r pairs by the keys, averaged over heads, of a block counted from 1."""
        del block
        return match(keys, r, prefix=vit.prefix)

    def reduce(
        self, tokens: Tokens, attention: Attention, block: int, *, plan: Any, vit: ViTShape
    ) -> Tokens:
        """Merges pairs in every block."""
        r = min(self.num_merged(vit), (tokens.x.shape[1] - vit.prefix) // 2)
        return join_pairs(tokens, self.match(attention.key.mean(axis=2), r, block, vit), vit)


def match(keys: Float[Array, "n t d"], r: int, *, prefix: int) -> Pairs:
    """Which r pairs of tokens are the most similar.

    Section 3.2 of "Token Merging: Your ViT But Faster", arXiv:2210.09461. Each token at an even
    position proposes the most similar one (by cosine) at an odd position; the r best proposals are
    carried out.

    Args:
      keys: what similarity is measured on: the attention's keys, averaged over heads.
      r: pairs to merge, at most half of the patch tokens. Static.
      prefix: the tokens before those of the patches: they stay, and nothing goes into them. Static.
    """
    keys = jax.lax.stop_gradient(keys).astype(jnp.float32)
    keys = keys / jnp.linalg.norm(keys, axis=-1, keepdims=True)
    first_odd, even_prefix = prefix | 1, (prefix + 1) // 2
    similarity = jnp.einsum("nac,nbc->nab", keys[:, ::2], keys[:, first_odd::2])
    proposal = similarity.max(-1)
    is_prefix = jnp.arange(proposal.shape[1]) < even_prefix
    goes = best(jnp.where(is_prefix, -jnp.inf, proposal), r)
    # Even tokens: those that stay come first, in order.
    even = jnp.argsort(goes, axis=-1, stable=True)
    rest, goes = jnp.split(even, [even.shape[1] - r], axis=1)
    partner = jnp.take_along_axis(similarity.argmax(-1), goes, axis=1)
    own, odd = (
        jnp.broadcast_to(places, (len(keys), len(places)))
        for places in (jnp.arange(prefix), jnp.arange(first_odd, keys.shape[1], 2))
    )
    rest = jnp.concatenate([own, 2 * rest[:, even_prefix:]], axis=1)
    return Pairs(rest, odd, 2 * goes, partner)
