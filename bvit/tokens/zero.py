"""`zero`: the paper's experiment. Blurry patches become black, and every token is computed."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bvit.image.checks import check_name
from bvit.image.focus import PAPER_THRESHOLD, mask_patches, patch_mask
from bvit.image.focus_measures import FOCUS_MEASURES, own_threshold
from bvit.tokens.policy import Budget, Pixels, Policy, check_budget
from bvit.tokens.ranking import best

ZERO_AT = ("pixels", "normalized")


@dataclasses.dataclass(frozen=True)
class Zero(Policy):
    """Sets the pixels of blurry patches to zero.

    Attributes:
      budget: patches that are left, those with the highest focus measure: a number, or a share of
        the patches; None: all that reach the threshold.
      score: the focus measure, a name in `bvit.image.focus_measures.FOCUS_MEASURES`; None: the
        variance of the Laplacian, as in the paper.
      threshold: the least focus measure of a patch that is left, without a budget; None: the
        paper's 100 for the Laplacian, or the measure's own.
      zero_at: write 0 into the "pixels" (black, as the paper says) or into the "normalized" image
        (the mean colour).
    """

    name: ClassVar[str] = "zero"
    pixels_only: ClassVar[bool] = True

    budget: Budget | None = None
    score: str | None = None
    threshold: float | None = None
    zero_at: str = "pixels"

    def __post_init__(self) -> None:
        if self.score is not None:
            check_name("focus measure", self.score, FOCUS_MEASURES)
        if self.zero_at not in ZERO_AT:
            raise ValueError(f"zero_at must be one of {', '.join(ZERO_AT)}: got {self.zero_at!r}.")
        if self.budget is not None:
            check_budget(self.budget, self.label)
            if self.threshold is not None:
                raise ValueError(
                    f"policy zero takes a budget or a threshold, not both: got {self.budget} and "
                    f"{self.threshold}; use zero:{self.budget} or zero:threshold={self.threshold}."
                )

    @property
    def label(self) -> str:
        """The policy as people type it."""
        if self.budget is not None:
            return f"zero:{self.budget}"
        if self.threshold is not None:
            return f"zero:threshold={self.threshold:g}"
        return "zero" if self.score is None else "zero:threshold"

    def prepare(
        self, image: Pixels, normalize: Callable[[Array], Array], *, patch_size: int
    ) -> Float[Array, "*b h w 3"]:
        """Masks before or after normalisation."""
        keep = self.kept(image, patch_size=patch_size)
        if self.zero_at == "pixels":
            return normalize(mask_patches(image, keep, patch_size=patch_size))
        return mask_patches(normalize(image), keep, patch_size=patch_size)

    def kept(self, image: Pixels, *, patch_size: int) -> Bool[Array, "*b rows columns"]:
        """The patches that are left."""
        if self.score is None and self.budget is None:
            threshold = PAPER_THRESHOLD if self.threshold is None else self.threshold
            return patch_mask(image, patch_size=patch_size, threshold=threshold)
        score = self.score or "laplacian"
        measure = FOCUS_MEASURES[score](image, patch_size=patch_size)
        if self.budget is None:
            return measure >= (own_threshold(score) if self.threshold is None else self.threshold)
        *batch, rows, columns = measure.shape
        count = self.budget
        if isinstance(count, float):
            count = max(1, int(count * rows * columns))
        if count > rows * columns:
            raise ValueError(
                f"policy {self.label} leaves more patches than there are, {rows}×{columns}; use "
                f"zero:{rows * columns} or fewer, or a share such as zero:0.5."
            )
        flat = measure.reshape(*batch, rows * columns)
        return best(flat, count).reshape(measure.shape)

    def shown(
        self, where: Int[Array, "n patches"], image: Float[Array, "n h w 3"], *, patch_size: int
    ) -> Int[Array, "n patches"]:
        """A masked patch is not shown."""
        kept = self.kept(image, patch_size=patch_size)
        return jnp.where(kept.reshape(where.shape), where, -1)
