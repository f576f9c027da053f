"""`pitome:8`: merging by energy (Tran et al. 2024, arXiv:2405.16148)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bvit.tokens.joining import Pairs
from bvit.tokens.policy import ViTShape
from bvit.tokens.tome import Tome

# Section 3.2: the margin falls from this in the first block to 0 after the last one.
MARGIN = 0.9


@dataclasses.dataclass(frozen=True)
class Pitome(Tome):
    """Merges tokens of high energy, those with many similar ones, in every block: PiToMe.

    The budget is that of `tome`: pairs that each block merges, or a share of the operations. As in
    the published code, the first half of the blocks lets all tokens merge, in order of energy; on
    DeiT-Tiny that costs less than protecting tokens in every block.
    """

    name: ClassVar[str] = "pitome"

    def match(self, keys: Float[Array, "n t d"], r: int, block: int, vit: ViTShape) -> Pairs:
        """Chooses r pairs by the keys, averaged over heads, of a block counted from 1."""
        margin = MARGIN * (1 - (block - 1) / vit.depth)
        return match(keys, r, margin=margin, protect=block > vit.depth // 2, prefix=vit.prefix)


def match(
    keys: Float[Array, "n t d"], r: int, *, margin: float, protect: bool = True, prefix: int = 0
) -> Pairs:
    """Which r pairs of tokens have the most energy.

    Equation 4 of "Accelerating Transformers with Spectrum-Preserving Token Merging": the energy of
    a token is the mean over all of f(cosine), f(c) = c - margin from the margin on, and
    exp(c - margin) - 1 under it. The 2r tokens of most energy may merge; of these, in order of
    energy, every other one goes into the most similar of the others.

    Args:
      keys: of the attention, averaged over heads.
      r: pairs to merge. Static.
      margin: of the cosine. Static.
      protect: whether tokens of less energy can't merge. If not, all tokens alternate between the
        two sides, and of the one the r most similar to a token of the other go. Static.
      prefix: the tokens before those of the patches, which are not merged. Static.
    """
    keys = jax.lax.stop_gradient(keys[:, prefix:]).astype(jnp.float32)
    keys = keys / jnp.maximum(jnp.linalg.norm(keys, axis=-1, keepdims=True), 1e-12)
    cosine = jnp.einsum("nid,njd->nij", keys, keys)
    energy = jax.nn.elu(cosine - margin).mean(-1)
    order = jnp.argsort(-energy, axis=-1, stable=True)

    def between(one: Array, other: Array) -> Array:
        rows = jnp.take_along_axis(cosine, one[..., None], axis=1)
        return jnp.take_along_axis(rows, other[:, None], axis=2)

    if protect:
        goes, stays, rest = order[:, : 2 * r : 2], order[:, 1 : 2 * r : 2], order[:, 2 * r :]
    else:
        goes, stays = order[:, ::2], order[:, 1::2]
        nearest = jnp.argsort(-between(goes, stays).max(-1), axis=-1, stable=True)
        goes = jnp.take_along_axis(goes, nearest, axis=1)
        goes, rest = goes[:, :r], goes[:, r:]
    own = jnp.broadcast_to(jnp.arange(prefix), (len(keys), prefix))
    rest = jnp.concatenate([own, prefix + rest], axis=1)
    return Pairs(rest, prefix + stays, prefix + goes, between(goes, stays).argmax(-1))
