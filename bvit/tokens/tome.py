"""`tome:8`: each block merges 8 pairs of similar tokens (Bolya et al. 2023, arXiv:2210.09461)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
        return f"tome:{self.budget}"

    def num_merged(self, vit: ViTShape) -> int:
        """Pairs that each block merges."""
        return resolve(self, range(1, vit.patches // 2 + 1), vit)

    def counts(self, vit: ViTShape) -> tuple[int, ...]:
        """Each block merges r, or half of the tokens that are left if they are fewer."""
        r, counts = self.num_merged(vit), [vit.patches]
        for _ in range(vit.depth):
            counts.append(counts[-1] - min(r, counts[-1] // 2))
        return tuple(counts)

    def reduce(
        self, tokens: Tokens, attention: Attention, block: int, *, plan: Any, vit: ViTShape
    ) -> Tokens:
        """Merges pairs in every block."""
        size = jnp.ones(tokens.x.shape[:2]) if tokens.size is None else tokens.size
        metric = attention.key.mean(axis=2)
        x, size, to = merge(tokens.x, size, metric, self.num_merged(vit), protected=vit.prefix)
        return Tokens(x, size, None, tokens.moved(to[:, vit.prefix :] - vit.prefix))


def merge(
    x: Float[Array, "n t d"],
    size: Float[Array, "n t"],
    metric: Float[Array, "n t k"],
    r: int,
    *,
    protected: int,
) -> tuple[Float[Array, "n t2 d"], Float[Array, "n t2"], Int[Array, "n t"]]:
    """Merges the r most similar pairs of tokens of each image into their averages.

    Section 3.2 of "Token Merging: Your ViT But Faster", arXiv:2210.09461. Each token at an even
    position proposes the most similar one (by cosine) at an odd position; the r best proposals are
    carried out. Averages are weighted by size. Differentiable in x.

    Args:
      x: the tokens.
      size: how many patches each token stands for.
      metric: what similarity is measured on: the attention's keys, averaged over heads.
      r: pairs to merge; static. At most half of the tokens that are not protected can go.
      protected: 1 if the first token is a class token, which is never merged away (and, being at an
        even position, never merged into); 0 if not. Static.

    Returns:
      The tokens that are left, with their sizes: those at even positions that were not merged, in
      order, then all those at odd positions. And for each token the one that it became.
    """
    tokens = x.shape[1]
    r = min(r, (tokens - protected) // 2)
    metric = jax.lax.stop_gradient(metric).astype(jnp.float32)
    metric = metric / jnp.linalg.norm(metric, axis=-1, keepdims=True)
    similarity = jnp.einsum("nac,nbc->nab", metric[:, ::2], metric[:, 1::2])
    partner = similarity.argmax(-1)
    similarity_of_best = similarity.max(-1).at[:, :protected].set(-jnp.inf)
    goes = best(similarity_of_best, r)
    # Even tokens: those that stay come first, in order. A token that goes is added to its partner.
    order = jnp.argsort(goes, axis=-1, stable=True)[:, : goes.shape[1] - r]
    into = goes[..., None] & (partner[..., None] == jnp.arange(similarity.shape[2]))
    into = into.astype(jnp.float32)
    weighted = x.astype(jnp.float32) * size[..., None]
    even, odd = weighted[:, ::2], weighted[:, 1::2]
    odd = odd + jnp.einsum("nab,nad->nbd", into, even)
    odd_size = size[:, 1::2] + jnp.einsum("nab,na->nb", into, size[:, ::2])
    stays = jnp.take_along_axis(x[:, ::2], order[..., None], axis=1)
    stays_size = jnp.take_along_axis(size[:, ::2], order, axis=1)
    merged = (odd / odd_size[..., None]).astype(x.dtype)
    first_odd = stays.shape[1]
    to_even = jnp.where(goes, first_odd + partner, jnp.cumsum(~goes, axis=1) - 1)
    to = jnp.zeros((len(x), tokens), jnp.int32)
    to = to.at[:, ::2].set(to_even).at[:, 1::2].set(first_odd + jnp.arange(odd.shape[1]))
    return (
        jnp.concatenate([stays, merged], axis=1),
        jnp.concatenate([stays_size, odd_size], axis=1),
        to,
    )
