"""Classification at a budget that follows from each picture, for evaluation and prediction."""

from typing import Final

import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import ArrayLike, Float, PyTree

from bvit.sharding import batch_sharding
from bvit.tokens.adaptive import Adaptive, adaptive_apply
from bvit.tokens.inputs import Policy

# Batches of pictures that are sorted by budget at once: sorting leaves one batch of each budget
# incomplete, which should be few of them …
GROUP_BATCHES: Final = 16
# … but no more pictures than this, for they are held as float32: 2.5 GB at 224 px.
GROUP_IMAGES: Final = 4096


class AdaptiveClassifier:
    """`adaptive_apply` under one policy, in batches of one size, so that nothing compiles twice."""

    def __init__(
        self,
        model: nn.Module,
        policy: Policy,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        batch_size: int,
        mesh: Mesh,
    ) -> None:
        """Computes nothing yet.

        Args:
          model: a ViT of `bvit.models.create`.
          policy: one with several budgets.
          mean: normalisation of the pixels.
          std: normalisation of the pixels.
          batch_size: pictures that run together, a multiple of the devices that share a batch.
          mesh: those devices, all of this process.
        """
        self._model, self._policy, self._warm = model, policy, False
        self._options = {
            "policy": policy.name,
            "score": policy.score,
            "threshold": policy.threshold,
            "mean": mean,
            "std": std,
            "chunk_size": batch_size,
            "sharding": batch_sharding(mesh),
        }

    @staticmethod
    def group(batch_size: int) -> int:
        """How many batches of pictures to give it at once."""
        return max(1, min(GROUP_BATCHES, GROUP_IMAGES // batch_size))

    def __call__(self, variables: PyTree, image: Float[ArrayLike, "n h w 3"]) -> Adaptive:
        """Logits and budgets of pictures, [0, 1], on the host; many at once waste least."""
        return self._apply(variables, image, self._policy.budgets)

    def warm_up(self, variables: PyTree, image_size: int) -> None:
        """Compiles what any picture may need, once, so that it falls into no measured time."""
        if self._warm:
            return
        blank = np.zeros((1, image_size, image_size, 3), np.float32)
        for budget in self._policy.budgets:
            self._apply(variables, blank, (budget,))
        self._warm = True

    def _apply(self, variables, image, budgets):
        return adaptive_apply(self._model, variables, image, budgets=budgets, **self._options)
