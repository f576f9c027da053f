"""Plans: which tiles of an image become tokens, chosen from its pixels.

A tile is a patch, or a block of 2×2 patches at half the resolution. All tiles have the same number
of pixels, so that one patch embedding fits them all, and a ViT only gathers. How many tokens there
are is fixed at trace time; which tiles they show is not.

Tiles are numbered in raster order, patches first.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from bvit.image.checks import check_name
from bvit.image.focus_measures import DEFAULT_MEASURE, FOCUS_MEASURES
from bvit.image.patches import halve, patchify
from bvit.tokens.policy import Attention, BudgetPolicy, Pixels, Tokens, ViTShape, with_prefix


class Plan(struct.PyTreeNode):
    """The tokens of each image; a pytree of static shape.

    Attributes:
      tile: the number of the tile that each token shows.
      left_out: the patches that one more token, the last, stands for by their mean; None: there is
        no such token.
      grid: rows and columns of patches. Static.
      blocks: whether tiles of 2×2 patches are numbered too; the grid is even then. Static.
    """

    tile: Int[Array, "*b t"]
    left_out: Bool[Array, "*b patches"] | None
    grid: tuple[int, int] = struct.field(pytree_node=False)
    blocks: bool = struct.field(pytree_node=False)

    def take(self, values: Float[Array, "*#b h w c"]) -> Float[Array, "*b t2 d"]:
        """The values of each token, of an image or of anything else that lies on the grid.

        Args:
          values: rows·s × columns·s for some s: s = patch_size for pixels, normalised or not; s = 1
            for position embeddings or tokens. A batch axis may be 1 where all images share it.

        Returns:
          [*b, tokens, s·s·c], each tile flattened in the order (row, column, channel).
        """
        side = values.shape[-3] // self.grid[0]
        patches = tiles = patchify(values, side)
        if self.blocks:
            tiles = jnp.concatenate([patches, patchify(halve(values), side)], axis=-2)
        # All indices are within the tiles: without a bounds check this is a plain copy.
        taken = jnp.take_along_axis(tiles, self.tile[..., None], -2, mode="promise_in_bounds")
        if self.left_out is None:
            return taken
        weights = self.left_out[..., None, :].astype(patches.dtype)
        total = jnp.matmul(weights, patches, preferred_element_type=jnp.float32)
        mean = total / self.left_out.sum(-1)[..., None, None]
        return jnp.concatenate([taken, mean.astype(taken.dtype)], axis=-2)

    @property
    def size(self) -> Float[Array, "*b t2"] | None:
        """How many patches each token stands for; None: each stands for one."""
        if self.left_out is not None:
            ones = jnp.ones(self.tile.shape)
            return jnp.concatenate([ones, self.left_out.sum(-1, keepdims=True)], axis=-1)
        if self.blocks:
            return jnp.where(self.tile < self.grid[0] * self.grid[1], 1.0, 4.0)
        return None

    @property
    def where(self) -> Int[Array, "*b patches"]:
        """For each patch the number of the token that shows it, -1 where none does."""
        patch = jnp.arange(self.grid[0] * self.grid[1])
        shows = self.tile[..., None] == patch
        if self.blocks:
            columns = self.grid[1]
            block = patch // columns // 2 * (columns // 2) + patch % columns // 2
            shows |= self.tile[..., None] == len(patch) + block
        where = jnp.where(shows.any(-2), shows.argmax(-2), -1)
        return where if self.left_out is None else jnp.where(where < 0, self.tile.shape[-1], where)


@dataclasses.dataclass(frozen=True)
class TilePolicy(BudgetPolicy):
    """Base of the policies that choose tiles from pixels; a subclass says which.

    At block 0 the plan is followed as tokens enter the encoder; in a later block a token becomes
    the mean of those of its patches.
    """

    needs_plan: ClassVar[bool] = True

    at: int = 0

    def embed(
        self,
        images: Float[Array, "n h w 3"],
        positions: Float[Array, "1 rows columns width"],
        embed: Callable[[Array], Array],
        *,
        plan: Any,
        vit: ViTShape,
    ) -> Tokens:
        """Embeds the tiles of the plan, if it is followed from the start."""
        if self.at:
            return super().embed(images, positions, embed, plan=None, vit=vit)
        x = embed(plan.take(images)) + plan.take(positions)
        return Tokens(x, plan.size, None, plan.where)

    def reduce(
        self, tokens: Tokens, attention: Attention, block: int, *, plan: Any, vit: ViTShape
    ) -> Tokens:
        """Follows the plan in block `at`."""
        if block != self.at:
            return tokens
        own, patches = tokens.x[:, : vit.prefix], tokens.x[:, vit.prefix :]
        taken = plan.take(patches.reshape(len(patches), *vit.grid, patches.shape[-1]))
        size = None if plan.size is None else with_prefix(plan.size, vit.prefix)
        return Tokens(jnp.concatenate([own, taken], axis=1), size, None, plan.where)


@dataclasses.dataclass(frozen=True)
class RankedPolicy(TilePolicy):
    """Base of those that rank patches by a focus measure.

    Attributes:
      score: the focus measure, a name in `bvit.image.focus_measures.FOCUS_MEASURES`.
    """

    score: str = DEFAULT_MEASURE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("focus measure", self.score, FOCUS_MEASURES)

    def measure(self, image: Pixels, vit: ViTShape) -> Float[Array, "*b rows columns"]:
        """The focus measure of each patch."""
        return FOCUS_MEASURES[self.score](image, patch_size=vit.patch_size)
