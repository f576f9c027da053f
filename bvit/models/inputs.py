"""From pixels to what a model is given: blurry patches marked, pictures normalised."""

import dataclasses

from jaxtyping import Array, Bool, Float

from bvit.image.focus import mask_patches, patch_mask
from bvit.image.pixels import normalize
from bvit.models import tokens

# Policies that compute every token unless they are given a budget.
UNBUDGETED = ("keep", "zero")
ZERO_AT = ("pixels", "normalized")


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a model does with the blurry patches of a picture; hashable, so static under jit.

    Attributes:
      name: keep, zero, or a policy of `bvit.models.tokens`.
      patch_size: side of a patch, in pixels.
      budget: patch tokens that are computed; None where the policy has no budget.
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
        if self.name not in ("zero", *tokens.POLICIES):
            raise ValueError(
                f"policy must be one of zero, {', '.join(tokens.POLICIES)}: got {self.name!r}."
            )
        if self.zero_at not in ZERO_AT:
            raise ValueError(f"zero_at must be one of {', '.join(ZERO_AT)}: got {self.zero_at!r}.")

    @property
    def label(self) -> str:
        """Short name for tables and curves: the policy, with its budget if it has one."""
        return self.name if self.budget is None else f"{self.name}:{self.budget}"


def parse_policy(text: str, *, default_budget: int | None = None, **options: object) -> Policy:
    """Reads a policy as people type it: "name" or "name:budget".

    Args:
      text: e.g. "keep" or "merge:31".
      default_budget: for a policy that takes a budget, where `text` names none.
      **options: the other fields of `Policy`.

    Raises:
      ValueError: for an unknown policy, or a budget that is no whole number.
    """
    name, colon, budget = text.partition(":")
    if colon and not budget.isdigit():
        raise ValueError(f"a policy's budget is a number of tokens: got {text!r}; e.g. drop:32.")
    if colon:
        return Policy(name, budget=int(budget), **options)
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
    if policy.name == "keep":
        return normalize(image, mean, std), None
    plan = tokens.plan(
        image,
        patch_size=policy.patch_size,
        policy=policy.name,
        budget=policy.budget,
        score=policy.score,
        key=keys if policy.name == "random" else None,
    )
    return normalize(image, mean, std), plan


def _kept_by_zero(image: Float[Array, "n h w 3"], policy: Policy) -> Bool[Array, "n hp wp"]:
    """The patches that `zero` leaves: the paper's threshold decides, or the budget if there is one."""
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
