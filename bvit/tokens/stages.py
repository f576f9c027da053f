"""Policies that reduce tokens in a few blocks, to a geometric schedule of counts."""

import dataclasses
from typing import ClassVar

from bvit.tokens.policy import Budget, Policy, ViTShape, check_budget, resolve


@dataclasses.dataclass(frozen=True)
class StagedPolicy(Policy):
    """Base of the policies that reduce the patch tokens in a few blocks.

    Attributes:
      budget: a share of the operations of `keep`; or the tokens that the last stage leaves, to
        which the others fall geometrically; or what each stage leaves, as numbers of tokens or
        shares of the patches.
      at: the blocks, counted from 1, of the stages; () takes those of the class, at `fractions` of
        the depth.
    """

    fractions: ClassVar[tuple[float, ...]]

    budget: Budget | tuple[Budget, ...]
    at: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for budget in self._budgets:
            check_budget(budget, self.label)
        if isinstance(self.budget, tuple) and len(self.budget) != len(self.at):
            raise ValueError(
                f"policy {self.label} names {len(self.budget)} budgets for {len(self.at)} blocks: "
                f"type one for each, as {self.name}:0.4+0.15@5+9."
            )
        if list(self.at) != sorted(set(self.at)):
            raise ValueError(f"the blocks of policy {self.label} must ascend.")

    @property
    def _budgets(self) -> tuple[Budget, ...]:
        return self.budget if isinstance(self.budget, tuple) else (self.budget,)

    @property
    def label(self) -> str:
        """The policy as people type it."""
        text = f"{self.name}:{'+'.join(map(str, self._budgets))}"
        return text + ("@" + "+".join(map(str, self.at)) if self.at else "")

    def blocks(self, vit: ViTShape) -> tuple[int, ...]:
        """The blocks of the stages."""
        if not self.at:
            found = (round(fraction * vit.depth) for fraction in self.fractions)
            return tuple(sorted({min(max(block, 1), vit.depth) for block in found}))
        if not (self.at[0] >= 1 and self.at[-1] <= vit.depth):
            raise ValueError(
                f"policy {self.label} acts in blocks {'+'.join(map(str, self.at))}, and this ViT "
                f"has blocks 1 to {vit.depth}."
            )
        return self.at

    def left(self, vit: ViTShape) -> dict[int, int]:
        """Block → the patch tokens that it leaves."""
        blocks = self.blocks(vit)
        if isinstance(self.budget, tuple):
            each = [
                budget if isinstance(budget, int) else max(1, round(budget * vit.patches))
                for budget in self.budget
            ]
            if each[0] > vit.patches or sorted(each, reverse=True) != each:
                raise ValueError(
                    f"policy {self.label} leaves {each} of {vit.patches} patch tokens: the numbers "
                    "must fall from stage to stage."
                )
            return dict(zip(blocks, each, strict=True))
        last = resolve(dataclasses.replace(self, at=blocks), range(1, vit.patches + 1), vit)
        return {
            block: max(last, round(vit.patches * (last / vit.patches) ** (i / len(blocks))))
            for i, block in enumerate(blocks, start=1)
        }

    def counts(self, vit: ViTShape) -> tuple[int, ...]:
        """Falls in the block of each stage."""
        left, counts = self.left(vit), [vit.patches]
        for block in range(1, vit.depth + 1):
            counts.append(left.get(block, counts[-1]))
        return tuple(counts)
