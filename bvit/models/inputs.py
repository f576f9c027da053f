"""From pixels to what a model is given: what becomes of blurry patches, pictures normalised."""

import dataclasses
import difflib
import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from bvit.image.focus import mask_patches, patch_mask
from bvit.image.pixels import normalize
from bvit.models import tokens

# Policies that compute every token unless they are given a budget.
UNBUDGETED = ("keep", "zero")
# Policies that are no plan: one changes pixels, the other merges tokens inside the encoder.
ON_PIXELS, BETWEEN_LAYERS = ("zero",), ("tome",)
ZERO_AT = ("pixels", "normalized")


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a model does with the blurry patches of a picture; hashable, so static under jit.

    Attributes:
      name: keep, zero, tome, or another policy of `bvit.models.tokens`.
      patch_size: side of a patch, in pixels.
      budget: patch tokens that are computed (`zero`: patches that are left; `tome`: tokens merged
        in each block); None where the policy has none.
      score: what patches are ranked by.
      threshold: variance of the Laplacian (0 to 255 scale) under which `zero` blanks a patch.
      zero_at: `zero` writes 0 into the "pixels" (black, as the paper says) or into the
        "normalized" picture (the mean colour).
    """

    name: str = "keep"
    patch_size: int = 16
    budget: int | None = None
    score: str = "laplacian"
    threshold: float = 100.0
    zero_at: str = "pixels"

    def __post_init__(self) -> None:
        known = (*ON_PIXELS, *BETWEEN_LAYERS, *tokens.POLICIES)
        if self.name not in known:
            near = difflib.get_close_matches(self.name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"policy must be one of {', '.join(known)}: got {self.name!r}{hint}")
        if self.name in BETWEEN_LAYERS and self.budget is None:
            raise ValueError("tome needs the number of tokens merged in each block, as tome:8.")
        if self.zero_at not in ZERO_AT:
            raise ValueError(f"zero_at must be one of {', '.join(ZERO_AT)}: got {self.zero_at!r}.")

    @property
    def label(self) -> str:
        """Short name for tables and curves: the policy, with its budget if it has one."""
        return self.name if self.budget is None else f"{self.name}:{self.budget}"


def parse_policy(
    text: str,
    *,
    grid: tuple[int, int],
    default_budget: int | None = None,
    **options: object,
) -> Policy:
    """Reads a policy as people type it: "name", "name:budget" or "name:share".

    Args:
      text: e.g. "keep", "merge:31", or "merge:0.5": the largest budget of at most half the patches.
      grid: rows and columns of patches that a share is of.
      default_budget: for a policy that takes a budget, where `text` names none.
      **options: the other fields of `Policy`.

    Raises:
      ValueError: for an unknown policy, or a budget that is neither tokens nor a share.
    """
    name, colon, budget = text.partition(":")
    if budget.isdigit():
        return Policy(name, budget=int(budget), **options)
    if colon:
        Policy(name, budget=1, **options)  # an unknown policy is told before its budget
        try:
            share = float(budget)
        except ValueError:
            share = math.nan
        if math.isnan(share) or name in BETWEEN_LAYERS:
            raise ValueError(
                "a policy's budget is a number of tokens, as drop:32, or (but for tome) a share of "
                f"them, as drop:0.5: got {text!r}."
            )
        return Policy(name, budget=tokens.budget_for(name, grid, share), **options)
    return Policy(name, budget=None if name in UNBUDGETED else default_budget, **options)


def prepare(
    image: Float[Array, "n h w 3"],
    policy: Policy,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    keys: Array,
) -> tuple[Float[Array, "n h w 3"], tokens.TokenPlan | None]:
    """Turns pixels into a model's input under a policy; each image on its own.

    Args:
      image: pixels in [0, 1], as the camera saw them.
      policy: what becomes of blurry patches. Static.
      mean: of each channel, taken away.
      std: of each channel, divided by.
      keys: one PRNG key for each image, [n]; only the policy `random` uses them.

    Returns:
      The normalised pictures, and the plan to hand to the ViT (None: every token).
    """
    if policy.name == "zero":
        keep = _kept_by_zero(image, policy)
        if policy.zero_at == "pixels":
            image = mask_patches(image, keep, patch_size=policy.patch_size)
        image = normalize(image, mean, std)
        if policy.zero_at == "normalized":
            image = mask_patches(image, keep, patch_size=policy.patch_size)
        return image, None
    return normalize(image, mean, std), _plan(image, policy, keys)


def for_policy(model: nn.Module, policy: Policy) -> nn.Module:
    """The model that a policy runs: `tome` merges inside the encoder, the others leave it alone."""
    return model.clone(tome_r=policy.budget) if policy.name in BETWEEN_LAYERS else model


def shown_levels(
    image: Float[Array, "n h w 3"], policy: Policy, *, keys: Array
) -> Int[Array, "n hp wp"]:
    """For pictures of a policy: the level at which it shows each patch.

    0 is full resolution, 1 and 2 are merged blocks of 2×2 and 4×4 patches, -1 is left out or
    blanked. Arguments are those of `prepare`.
    """
    if policy.name in ON_PIXELS:
        return _kept_by_zero(image, policy).astype(jnp.int32) - 1
    plan = _plan(image, policy, keys)
    if plan is None:
        n, height, width, _ = image.shape
        return jnp.zeros((n, height // policy.patch_size, width // policy.patch_size), jnp.int32)
    return plan.level_map


def _plan(image: Array, policy: Policy, keys: Array) -> tokens.TokenPlan | None:
    if policy.name in ("keep", *BETWEEN_LAYERS):
        return None
    return tokens.plan(
        image,
        patch_size=policy.patch_size,
        policy=policy.name,
        budget=policy.budget,
        score=policy.score,
        key=keys if policy.name == "random" else None,
    )


def _kept_by_zero(image: Array, policy: Policy) -> Bool[Array, "n hp wp"]:
    """The patches that `zero` leaves: the paper's threshold decides, or a budget if it has one."""
    if policy.budget is None:
        return patch_mask(image, patch_size=policy.patch_size, threshold=policy.threshold)
    dropped = tokens.plan(
        image,
        patch_size=policy.patch_size,
        policy="drop",
        budget=policy.budget,
        score=policy.score,
    )
    return dropped.level_map >= 0
