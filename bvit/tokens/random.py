"""`random:98`: as `drop`, but the patches are drawn: the control."""

import dataclasses
from typing import ClassVar

import jax

from bvit.image.batching import image_keys
from bvit.tokens.plan import Plan, TilePolicy
from bvit.tokens.policy import Keys, Pixels, ViTShape
from bvit.tokens.ranking import best, first


@dataclasses.dataclass(frozen=True)
class Random(TilePolicy):
    """Computes patches that are drawn, each with the same probability."""

    name: ClassVar[str] = "random"
    draws: ClassVar[bool] = True

    def plan(self, image: Pixels, vit: ViTShape, *, key: Keys | None = None) -> Plan:
        """The tiles of the drawn patches, in raster order.

        Args:
          image: RGB in [0, 1]; only its shape counts.
          vit: the ViT.
          key: one PRNG key, of which image i gets fold_in(key, i), or a key for each image, [*b].

        Raises:
          ValueError: there is no key.
        """
        if key is None:
            raise ValueError(
                "policy random draws patches, so it needs a key: pass key=jax.random.key(0), or a "
                "key for each image."
            )
        batch, count = tuple(image.shape[:-3]), self.num_tokens(vit)
        keys = image_keys(key, batch).reshape(-1)
        drawn = jax.vmap(lambda key: jax.random.uniform(key, (vit.patches,)))(keys)
        chosen = best(drawn.reshape(*batch, vit.patches), count)
        return Plan(first(chosen, count), None, vit.grid, blocks=False)
