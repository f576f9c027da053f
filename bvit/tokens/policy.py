"""The protocol of a token policy: what a ViT spends its compute on.

A policy is a frozen, hashable object, static under jit. `Policy` does nothing at each of its hooks,
so that a subclass overrides only what it changes:

  prepare   pixels in [0, 1] → the normalised image that the model is given
  plan      pixels in [0, 1] → which tiles of the image become tokens
  embed     normalised images → the tokens that enter the encoder
  reduce    inside a block, between attention and MLP: fewer tokens
  counts    how many tokens each block computes; validation, cost and tables follow from it
  shown     which token shows each patch; overlays follow from it

The encoder calls `embed` and `reduce`, and names no policy.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from bvit.image.patches import nearest, patchify

# A whole number of tokens, or a share of the operations of a pass that computes every token.
Budget = int | float
Pixels = Float[Array, "*b h w 3"]  # in [0, 1]
# One PRNG key for all images, or a key for each, [*b].
Keys = Key[Array, "..."]


class ViTShape(NamedTuple):
    """What a policy has to know about a ViT; every field is static.

    Attributes:
      grid: rows and columns of patches.
      patch_size: side of a patch in pixels.
      depth: number of blocks.
      width: features of a token.
      mlp_ratio: hidden features of the MLP, as a multiple of width.
      prefix: tokens before those of the patches: the class token, a distilled DeiT's second one,
        registers.
      has_class_token: whether the first token is the class token.
    """

    grid: tuple[int, int]
    patch_size: int = 16
    depth: int = 12
    width: int = 192
    mlp_ratio: float = 4.0
    prefix: int = 1
    has_class_token: bool = True

    @property
    def patches(self) -> int:
        """Number of patches."""
        return self.grid[0] * self.grid[1]


class Attention(NamedTuple):
    """What a block's attention computed, for policies that compare tokens by it.

    Attributes:
      key: the keys.
      weights: of each query and key, summing to 1 over keys; None where no policy reads them, so
        that attention can be fused.
    """

    key: Float[Array, "n t heads head_dim"]
    weights: Float[Array, "n heads t t"] | None

    def needed_weights(self) -> Float[Array, "n heads t t"]:
        """The weights, for a policy that reads them.

        Raises:
          ValueError: the encoder did not keep them.
        """
        if self.weights is None:
            raise ValueError("the attention's weights are needed: let reads_weights return True.")
        return self.weights


class Tokens(struct.PyTreeNode):
    """The tokens between two layers of the encoder.

    Attributes:
      x: features; the first `prefix` tokens belong to no patch.
      size: how many patches each token stands for, 0 for padding; None: each stands for one.
      mask: False where a token is padding; None: no token is.
      where: for each patch the number of the token that shows it, not counting the prefix, or -1;
        None: patch i is shown by token i.
    """

    x: Float[Array, "n t width"]
    size: Float[Array, "n t"] | None = None
    mask: Bool[Array, "n t"] | None = None
    where: Int[Array, "n patches"] | None = None

    def moved(self, to: Int[Array, "n t2"]) -> Int[Array, "n patches"]:
        """`where`, after the patch token i has become token to[i] (-1: it is gone)."""
        if self.where is None:
            return to
        found = jnp.take_along_axis(to, jnp.maximum(self.where, 0), axis=1)
        return jnp.where(self.where >= 0, found, -1)


@dataclasses.dataclass(frozen=True)
class Policy:
    """Computes every token; the base class of all policies.

    Attributes:
      name: how people type it.
      pixels_only: whether the policy acts on pixels alone, so that it suits any model.
      needs_plan: whether the encoder has to be given what `plan` returns.
      draws: whether the policy draws random numbers, so that `plan` needs keys.
    """

    name: ClassVar[str]
    pixels_only: ClassVar[bool] = False
    needs_plan: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """The policy as people type it; `bvit.tokens.parse` reads it back."""
        return self.name

    def prepare(
        self, image: Pixels, normalize: Callable[[Array], Array], *, patch_size: int
    ) -> Float[Array, "*b h w 3"]:
        """Turns pixels in [0, 1] into the normalised image that the model is given."""
        del patch_size
        return normalize(image)

    def plan(self, image: Pixels, vit: ViTShape, *, key: Keys | None = None) -> Any:
        """Chooses the tokens of each image from its pixels; None: every patch is one."""
        del image, vit, key

    def embed(
        self,
        images: Float[Array, "n h w 3"],
        positions: Float[Array, "1 rows columns width"],
        embed: Callable[[Array], Array],
        *,
        plan: Any,
        vit: ViTShape,
    ) -> Tokens:
        """The patch tokens that enter the encoder.

        Args:
          images: normalised.
          positions: the position embedding of each patch.
          embed: tiles [n, t, p·p·3] → [n, t, width].
          plan: of `plan`.
          vit: the ViT.
        """
        del plan
        x = embed(patchify(images, vit.patch_size))
        return Tokens(x + positions.reshape(1, vit.patches, -1))

    def reads_weights(self, block: int, vit: ViTShape) -> bool:
        """Whether `reduce` needs the attention's weights in this block."""
        del block, vit
        return False

    def reduce(
        self, tokens: Tokens, attention: Attention, block: int, *, plan: Any, vit: ViTShape
    ) -> Tokens:
        """Reduces the tokens between attention and MLP of a block, counted from 1."""
        del attention, block, plan, vit
        return tokens

    def counts(self, vit: ViTShape) -> tuple[int, ...]:
        """How many patch tokens each layer computes, depth + 1 numbers.

        The attention of block i, counted from 1, computes counts[i - 1], its MLP counts[i].

        Raises:
          ValueError: the ViT can't follow the policy.
        """
        return (vit.patches,) * (vit.depth + 1)

    def overhead(self, vit: ViTShape) -> float:
        """Operations of one image that the policy itself adds to those of the blocks."""
        del vit
        return 0.0

    def shown(
        self,
        where: Int[Array, "n patches"],
        image: Float[Array, "n h w 3"],
        *,
        patch_size: int,
    ) -> Int[Array, "n patches"]:
        """Which token shows each patch, -1 for none, from what the encoder reports."""
        del image, patch_size
        return where


@dataclasses.dataclass(frozen=True)
class BudgetPolicy(Policy):
    """Base of the policies that leave a number of tokens from one block on.

    Attributes:
      budget: tokens that are left, or a share of the operations of `keep`.
      at: the block, counted from 1, inside which their number falls; 0: before the first.
    """

    budget: Budget
    at: int = 0

    def __post_init__(self) -> None:
        check_budget(self.budget, self.label)

    @property
    def label(self) -> str:
        """The policy as people type it."""
        return f"{self.name}:{self.budget}" + f"@{self.at}" * (self.at != type(self).at)

    def possible(self, vit: ViTShape) -> range:
        """The numbers of tokens that can be left."""
        return range(1, vit.patches + 1)

    def num_tokens(self, vit: ViTShape) -> int:
        """The number of tokens that are left."""
        return resolve(self, self.possible(vit), vit)

    def counts(self, vit: ViTShape) -> tuple[int, ...]:
        """Every patch up to the attention of block `at`, then those that are left."""
        first = min(type(self).at, 1)
        if not first <= self.at <= vit.depth:
            raise ValueError(
                f"policy {self.label} acts in block {self.at}, and this ViT has blocks 1 to "
                f"{vit.depth}: use @{min(max(self.at, first), vit.depth)}."
            )
        left = self.num_tokens(vit)
        return (vit.patches,) * self.at + (left,) * (vit.depth + 1 - self.at)


def operations(policy: Policy, vit: ViTShape) -> float:
    """Floating-point operations of one image in the encoder; a multiply-add counts as two.

    Dense layers and attention's two products are counted; norms, softmax and the head are not
    (under 1 % of DeiT-Tiny at 224 px).
    """
    counts = policy.counts(vit)
    pixels = 3 * vit.patch_size**2
    total = 2.0 * counts[0] * pixels * vit.width + policy.overhead(vit)
    for before, after in zip(counts, counts[1:], strict=False):
        attended, transformed = before + vit.prefix, after + vit.prefix
        total += 8 * attended * vit.width**2 + 4 * attended**2 * vit.width
        total += 4 * transformed * vit.mlp_ratio * vit.width**2
    return total


def mean_tokens(policy: Policy, vit: ViTShape) -> float:
    """Patch tokens that a block's attention computes, the mean over the blocks."""
    counts = policy.counts(vit)[:-1]
    return sum(counts) / len(counts)


def check_budget(budget: Budget, label: str) -> None:
    """Raises a ValueError unless a budget is a whole number from 1 or a share in (0, 1]."""
    if isinstance(budget, int) and budget >= 1:
        return
    if isinstance(budget, float) and 0 < budget <= 1:
        return
    raise ValueError(
        f"a budget is a whole number of tokens, or a share of the operations in (0, 1]: got "
        f"{budget} in {label!r}; type 98 or 0.5, for example."
    )


def resolve(policy: Any, possible: range, vit: ViTShape) -> int:
    """The budget of a policy as a number of tokens.

    Args:
      policy: one with a field `budget`.
      possible: the numbers that it can have on this ViT.
      vit: the ViT.

    Returns:
      The number itself; for a share, the number with which the policy costs most without exceeding
      that share of the operations of `keep`, or else the cheapest one.

    Raises:
      ValueError: a number that the policy can't have.
    """
    if isinstance(policy.budget, float):
        return _closest(policy, possible, vit)
    if policy.budget not in possible:
        steps = f" in steps of {possible.step}" if possible.step > 1 else ""
        raise ValueError(
            f"policy {policy.label} on a grid of {vit.grid[0]}×{vit.grid[1]} patches: the budget "
            f"must be {possible[0]} to {possible[-1]}{steps}; use "
            f"{nearest(policy.budget, possible)}, or a share such as 0.5."
        )
    return policy.budget


@functools.lru_cache(maxsize=1024)
def _closest(policy: Any, possible: range, vit: ViTShape) -> int:
    limit = policy.budget * operations(Policy(), vit)
    costs = {
        number: operations(dataclasses.replace(policy, budget=number), vit) for number in possible
    }
    within = [number for number, cost in costs.items() if cost <= limit]
    return max(within, key=costs.__getitem__) if within else min(costs, key=costs.__getitem__)


def with_prefix(values: Float[Array, "n t"], prefix: int) -> Float[Array, "n t2"]:
    """Puts a 1 for each prefix token before the values of the patch tokens."""
    return jnp.pad(values, ((0, 0), (prefix, 0)), constant_values=1)
