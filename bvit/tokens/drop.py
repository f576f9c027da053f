"""`drop:98`: the sharpest patches are tokens, the others are left out."""

import dataclasses
from typing import ClassVar

from bvit.tokens.plan import Plan, RankedPolicy
from bvit.tokens.policy import Keys, Pixels, ViTShape
from bvit.tokens.ranking import best, first


@dataclasses.dataclass(frozen=True)
class Drop(RankedPolicy):
    """Computes the patches with the highest focus measure; equal ones go in raster order."""

    name: ClassVar[str] = "drop"

    def plan(self, image: Pixels, vit: ViTShape, *, key: Keys | None = None) -> Plan:
        """The tiles of the best patches, in raster order."""
        measure = self.measure(image, vit)
        count = self.num_tokens(vit)
        chosen = best(measure.reshape(*measure.shape[:-2], vit.patches), count)
        return Plan(first(chosen, count), None, vit.grid, blocks=False)
