"""`merge:97`: blocks of 2×2 patches with little detail become one token each."""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from bvit.image.patches import block_values
from bvit.tokens.plan import Plan, RankedPolicy
from bvit.tokens.policy import Keys, Pixels, ViTShape
from bvit.tokens.ranking import best, first

# Tokens that a block costs when it is not merged, beyond the one it would be merged into.
SPLIT_COST = 3


@dataclasses.dataclass(frozen=True)
class Merge(RankedPolicy):
    """Shows blocks of 2×2 patches at half the resolution, where the mean focus measure is least.

    For measures that are mean squares, a block's mean is the measure of the block as a whole; for
    "reblur" it is what merging the block loses. The nearest published relative is APT (Choudhury
    et al. 2025, "Accelerating Vision Transformers with Adaptive Patch Sizes", arXiv:2510.18091).
    """

    name: ClassVar[str] = "merge"

    def possible(self, vit: ViTShape) -> range:
        """A token for each block, and 3 more for each that is not merged.

        Raises:
          ValueError: the grid can't be divided into blocks.
        """
        rows, columns = vit.grid
        if rows % 2 or columns % 2:
            height, width = (side * vit.patch_size for side in vit.grid)
            fits = [max(side // 2, 1) * 2 * vit.patch_size for side in vit.grid]
            raise ValueError(
                "policy merge needs a grid with an even number of rows and columns: got "
                f"{rows}×{columns} patches (image {height}×{width}, patch_size={vit.patch_size}); "
                f"resize the image to {fits[0]}×{fits[1]}, or change patch_size."
            )
        return range(vit.patches // 4, vit.patches + 1, SPLIT_COST)

    def plan(self, image: Pixels, vit: ViTShape, *, key: Keys | None = None) -> Plan:
        """The patches of blocks that are not merged, in raster order, then the merged blocks."""
        count = self.num_tokens(vit)
        means = block_values(self.measure(image, vit), 2).mean(-1)
        splits = (count - vit.patches // 4) // SPLIT_COST
        split = best(_flat(means), splits).reshape(means.shape)
        patches = jnp.repeat(jnp.repeat(split, 2, axis=-2), 2, axis=-1)
        chosen = jnp.concatenate([_flat(patches), _flat(~split)], axis=-1)
        return Plan(first(chosen, count), None, vit.grid, blocks=True)


def _flat(blocks: Shaped[Array, "*b r c"]) -> Shaped[Array, "*b n"]:
    return blocks.reshape(*blocks.shape[:-2], math.prod(blocks.shape[-2:]))
