"""Token merging between the layers, by bipartite soft matching (Bolya et al. 2023)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bvit.tokens import pyramid


def merge(
    x: Float[Array, "n t d"],
    size: Float[Array, "n t"],
    metric: Float[Array, "n t k"],
    r: int,
    *,
    protected: int,
) -> tuple[Float[Array, "n t-r d"], Float[Array, "n t-r"]]:
    """Merges the r most similar pairs of tokens of each image into their averages.

    Section 3.2 of "Token Merging: Your ViT But Faster", arXiv:2210.09461.
    Tokens at even places each propose the most similar one (by cosine) at odd places; the r best
    proposals are carried out. Averages are weighted by size. Differentiable in x.

    Args:
      x: the tokens.
      size: how many patches each token stands for.
      metric: what similarity is measured on: the attention's keys, averaged over heads.
      r: pairs to merge; static. At most half of the tokens that are not protected can go.
      protected: 1 if the first token is a class token, which is never merged away (and, being at an
        even place, never merged into); 0 if not. Static.

    Returns:
      The tokens that are left, with their sizes: those at even places that were not merged, in
      order, then all those at odd places.
    """
    tokens = x.shape[1]
    r = min(r, (tokens - protected) // 2)
    if r <= 0:
        return x, size
    metric = jax.lax.stop_gradient(metric).astype(jnp.float32)
    metric = metric / jnp.linalg.norm(metric, axis=-1, keepdims=True)
    similarity = jnp.einsum("nac,nbc->nab", metric[:, ::2], metric[:, 1::2])
    best, partner = similarity.max(-1), similarity.argmax(-1)
    best = best.at[:, :protected].set(-jnp.inf)
    goes = pyramid.ranks(best) < r
    # Even tokens: those that stay come first, in order. A token that goes is added to its partner.
    order = jnp.argsort(goes, axis=-1, stable=True)[:, : best.shape[1] - r]
    into = goes[..., None] & (partner[..., None] == jnp.arange(similarity.shape[2]))
    into = into.astype(jnp.float32)
    weighted = x.astype(jnp.float32) * size[..., None]
    even, odd = weighted[:, ::2], weighted[:, 1::2]
    odd = odd + jnp.einsum("nab,nad->nbd", into, even)
    odd_size = size[:, 1::2] + jnp.einsum("nab,na->nb", into, size[:, ::2])
    stays = jnp.take_along_axis(x[:, ::2], order[..., None], axis=1)
    stays_size = jnp.take_along_axis(size[:, ::2], order, axis=1)
    merged = (odd / odd_size[..., None]).astype(x.dtype)
    return (
        jnp.concatenate([stays, merged], axis=1),
        jnp.concatenate([stays_size, odd_size], axis=1),
    )
