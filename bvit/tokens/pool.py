"""`pool:98`: as `drop`, but one more token stands for the patches that are left out."""

import dataclasses
from typing import ClassVar

from bvit.tokens.plan import Plan, RankedPolicy
from bvit.tokens.policy import Keys, Pixels, ViTShape
from bvit.tokens.ranking import best, first


@dataclasses.dataclass(frozen=True)
class Pool(RankedPolicy):
    """Computes the patches with the highest focus measure, and the mean of the others.

    The budget counts the token that stands for the others.
    """

    name: ClassVar[str] = "pool"

    def possible(self, vit: ViTShape) -> range:
        """At least one patch, one of the others."""
        return range(2, vit.patches + 1)

    def plan(self, image: Pixels, vit: ViTShape, *, key: Keys | None = None) -> Plan:
        """The tiles of the best patches, in raster order, and which patches are left out."""
        measure = self.measure(image, vit)
        count = self.num_tokens(vit) - 1
        chosen = best(measure.reshape(*measure.shape[:-2], vit.patches), count)
        return Plan(first(chosen, count), ~chosen, vit.grid, blocks=False)
