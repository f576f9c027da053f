"""From pixels to what a model is given: what becomes of blurry patches, pictures normalised."""

import dataclasses
import difflib
import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from bvit.image.checks import check_name
from bvit.image.focus import PAPER_THRESHOLD, mask_patches, patch_mask
from bvit.image.focus_measures import DEFAULT_MEASURE, FOCUS_MEASURES, THRESHOLDS, own_threshold
from bvit.image.pixels import normalize
from bvit.tokens import plans as tokens
from bvit.tokens.adaptive import smallest_budget

# Policies that compute every token unless they are given a budget.
UNBUDGETED = ("keep", "zero")
# A policy that is no plan, but changes pixels.
ON_PIXELS = ("zero",)
# Policies that give the encoder every patch as it is: there is nothing to draw over the pixels.
SHOW_EVERYTHING = ("keep", *tokens.BETWEEN_LAYERS)
# Policies that take no notice of how sharp a patch is.
UNSCORED = ("random", *SHOW_EVERYTHING)
# Policies whose budget can follow from the picture, and the shares of all patches that one may then
# cost: few, for each is compiled.
ADAPTIVE = ("drop", "pool", *tokens.MERGE_LEVELS)
ADAPTIVE_SHARES = (0.25, 0.5, 0.75, 1.0)
ZERO_AT = ("pixels", "normalized")


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a model does with the blurry patches of a picture; hashable, so static under jit.

    Attributes:
      name: keep, zero, tome, cluster, or another policy of `bvit.tokens.plans`.
      patch_size: side of a patch, in pixels.
      budget: patch tokens that are computed (`zero`: patches that are left; `cluster`: tokens
        that are; `tome`: tokens merged in each block); None where the policy has none.
      score: what patches are ranked by; a name in `bvit.image.focus_measures.FOCUS_MEASURES`.
      threshold: the score from which a patch counts as sharp: of the budget, only as much is used
        as reaches it, and the rest is padding. None fills the budget; for `zero` without a budget,
        None is the paper's experiment: the variance of the Laplacian must be at least 100.
      budgets: where there are any, each picture gets the smallest of these, ascending, that holds
        what reaches the threshold in it, or else the largest; see `bvit.models.adaptive_apply`.
      zero_at: `zero` writes 0 into the "pixels" (black, as the paper says) or into the
        "normalized" picture (the mean colour).
    """

    name: str = "keep"
    patch_size: int = 16
    budget: int | None = None
    score: str = DEFAULT_MEASURE
    threshold: float | None = None
    zero_at: str = "pixels"
    budgets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        known = (*ON_PIXELS, *tokens.BETWEEN_LAYERS, *tokens.POLICIES)
        if self.name not in known:
            near = difflib.get_close_matches(self.name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"policy must be one of {', '.join(known)}: got {self.name!r}{hint}")
        check_name("score", self.score, FOCUS_MEASURES)
        if self.name in tokens.BETWEEN_LAYERS and self.budget is None:
            raise ValueError(
                f"{self.name} needs a budget: tome the tokens that each block merges, as tome:8, "
                "cluster those that are left, as cluster:98 or cluster:0.5."
            )
        if self.name in UNSCORED and self.threshold is not None:
            raise ValueError(
                f"policy {self.name!r} ranks no patches, so it has no threshold: leave it out, or "
                "use drop, pool or merge."
            )
        if self.budgets and (self.name not in ADAPTIVE or self.threshold is None):
            raise ValueError(
                f"a budget that follows from the picture needs one of {', '.join(ADAPTIVE)}, and a "
                f"threshold: got {self.name}, threshold={self.threshold}."
            )
        if self.zero_at not in ZERO_AT:
            raise ValueError(f"zero_at must be one of {', '.join(ZERO_AT)}: got {self.zero_at!r}.")

    @property
    def family(self) -> str:
        """The policy without its budget, as one types it: "drop", "drop:threshold"."""
        parts = [self.name]
        if self.budgets:
            parts.append("auto")
        if self.threshold not in (None, THRESHOLDS[self.score]):
            parts.append(f"threshold={self.threshold:g}")
        elif self.threshold is not None and not self.budgets:
            parts.append("threshold")
        return ":".join(parts)

    @property
    def static(self) -> tuple["Policy", ...]:
        """The policies of one budget that this one chooses from: itself, if it has one budget."""
        if not self.budgets:
            return (self,)
        one = dataclasses.replace(self, threshold=None, budgets=())
        return tuple(dataclasses.replace(one, budget=budget) for budget in self.budgets)

    @property
    def label(self) -> str:
        """Short name for tables and curves: the policy, with its budget if it has one."""
        return self.family if self.budget is None else f"{self.family}:{self.budget}"


def parse_policy(
    text: str,
    *,
    grid: tuple[int, int],
    default_budget: int | None = None,
    threshold: float | None = None,
    shares: tuple[float, ...] = ADAPTIVE_SHARES,
    **options: object,
) -> Policy:
    """Reads a policy as people type it: a name, and then, in any order, a budget and a threshold.

    The budget is a number of tokens ("merge:31") or a share of the patches ("merge:0.5": the
    largest budget of at most half of them). With "threshold" ("drop:0.5:threshold") the budget is a
    capacity: patches that do not reach the threshold leave their places empty. It is `threshold`,
    or else the score's own; "threshold=0.1" names another. `zero` alone is the paper's experiment,
    by the variance of the Laplacian; "zero:threshold" goes by the score. With "auto" for a budget
    ("merge:auto") each picture gets the smallest of a few that holds what reaches the threshold.

    Args:
      text: the policy.
      grid: rows and columns of patches that a share is of.
      default_budget: for a policy that takes a budget, where `text` names none.
      threshold: where `text` asks for one without naming it; for `zero`, if the score is
        "laplacian". None is the score's own.
      shares: of the patches, what "auto" chooses from.
      **options: the other fields of `Policy`.

    Raises:
      ValueError: for an unknown policy, a budget that is neither tokens nor a share, or a threshold
        that is none or that the policy can't use.
    """
    name, *rest = text.split(":")
    score = Policy(name, budget=1, **options).score  # an unknown policy is told before the rest
    asked = [part for part in rest if part.partition("=")[0] == "threshold"]
    rest = [part for part in rest if part not in asked]
    if len(asked) > 1 or len(rest) > 1:
        raise ValueError(
            "a policy is a name, and then at most one budget and one threshold, as "
            f"drop:0.5:threshold: got {text!r}."
        )
    if rest == ["auto"]:
        asked = asked or ["threshold"]
        options["budgets"] = _adaptive_budgets(name, grid, shares)
    budget = None if name in UNBUDGETED or "budgets" in options else default_budget
    if rest and rest != ["auto"]:
        budget = _parse_budget(rest[0], name, grid, text)
    if asked:
        threshold = _parse_threshold(asked[0], threshold, score)
    elif name == "zero" and budget is None:
        threshold = _papers_threshold(threshold, score)
    else:
        threshold = None
    return Policy(name, budget=budget, threshold=threshold, **options)


def _adaptive_budgets(
    name: str, grid: tuple[int, int], shares: tuple[float, ...]
) -> tuple[int, ...]:
    if name not in ADAPTIVE:
        raise ValueError(
            f"a budget that follows from the picture needs one of {', '.join(ADAPTIVE)}: got "
            f"{name}:auto."
        )
    return tuple(sorted({tokens.budget_for(name, grid, share) for share in shares}))


def _parse_budget(budget: str, name: str, grid: tuple[int, int], text: str) -> int:
    if budget.isdigit():
        return int(budget)
    try:
        share = float(budget)
    except ValueError:
        share = math.nan
    if math.isnan(share) or name == "tome":
        raise ValueError(
            "a policy's budget is a number of tokens, as drop:32, or (but for tome) a share of "
            f"them, as drop:0.5, or auto: got {text!r}."
        )
    return tokens.budget_for(name, grid, share)


def _parse_threshold(asked: str, configured: float | None, score: str) -> float:
    _, equals, number = asked.partition("=")
    if not equals:
        return own_threshold(score) if configured is None else configured
    try:
        return float(number)
    except ValueError:
        raise ValueError(f"a threshold is a number, as threshold=0.1: got {asked!r}.") from None


def _papers_threshold(configured: float | None, score: str) -> float | None:
    """What `zero` compares the variance of the Laplacian with; None is the paper's threshold."""
    if configured is None or (score, configured) == ("laplacian", PAPER_THRESHOLD):
        return None
    if score != "laplacian":
        raise ValueError(
            f"threshold={configured:g} is of score {score!r}, but policy zero goes by the variance "
            "of the Laplacian: use score=laplacian with it, or policy zero:threshold to go by "
            f"{score}."
        )
    return configured


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

    Raises:
      ValueError: a policy of several budgets: its pictures differ in shape, and have no one plan.
    """
    if policy.budgets:
        raise ValueError(
            f"policy {policy.label} gives each picture a budget of its own, so there is no plan "
            f"for all of them: name a budget, as {policy.static[0].label}; only evaluation, "
            "prediction and bvit.models.adaptive_apply can choose."
        )
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
    """The model that a policy runs: `tome` and `cluster` merge inside it, others leave it alone.

    Tokens have something to be alike in once they have seen each other: `cluster` comes after
    `plan_after` blocks, and at least after the first, if there is another.
    """
    if policy.name == "tome":
        return model.clone(tome_r=policy.budget)
    if policy.name == "cluster":
        after = min(max(model.plan_after, 1), model.depth - 1)
        return model.clone(cluster_to=policy.budget, plan_after=after)
    return model


def shown_levels(
    image: Float[Array, "n h w 3"], policy: Policy, *, keys: Array | None = None
) -> Int[Array, "n hp wp"]:
    """For pictures of a policy: the level at which it shows each patch.

    0 is full resolution, 1 and 2 are merged blocks of 2×2 and 4×4 patches, -1 is left out or
    blanked. Arguments are those of `prepare`.
    """
    if policy.budgets:
        chosen = smallest_budget(
            image,
            patch_size=policy.patch_size,
            policy=policy.name,
            score=policy.score,
            threshold=policy.threshold,
            budgets=policy.budgets,
        )
        levels = [shown_levels(image, one) for one in policy.static]
        return jnp.select([(chosen == b)[:, None, None] for b in policy.budgets], levels)
    if policy.name in ON_PIXELS:
        return _kept_by_zero(image, policy).astype(jnp.int32) - 1
    plan = _plan(image, policy, keys)
    if plan is None:
        n, height, width, _ = image.shape
        return jnp.zeros((n, height // policy.patch_size, width // policy.patch_size), jnp.int32)
    return plan.level_map


def used_tokens(image: Float[Array, "n h w 3"], policy: Policy) -> Int[Array, " n"]:
    """How many places of a policy's budget each picture fills; the rest of them is padding.

    Args:
      image: pixels in [0, 1].
      policy: one with a threshold and one budget. Static.
    """
    return _plan(image, policy, None).mask.sum(-1)


def _plan(image: Array, policy: Policy, keys: Array | None) -> tokens.TokenPlan | None:
    if policy.name in SHOW_EVERYTHING:
        return None
    return tokens.plan(
        image,
        patch_size=policy.patch_size,
        policy=policy.name,
        budget=policy.budget,
        score=policy.score,
        threshold=policy.threshold,
        key=keys if policy.name == "random" else None,
    )


def _kept_by_zero(image: Array, policy: Policy) -> Bool[Array, "n hp wp"]:
    """The patches that `zero` leaves: those that reach a threshold, fill a budget, or both."""
    if policy.budget is not None:
        dropped = tokens.plan(
            image,
            patch_size=policy.patch_size,
            policy="drop",
            budget=policy.budget,
            score=policy.score,
            threshold=policy.threshold,
        )
        return dropped.level_map >= 0
    if policy.threshold is None:
        return patch_mask(image, patch_size=policy.patch_size)
    return FOCUS_MEASURES[policy.score](image, patch_size=policy.patch_size) >= policy.threshold
