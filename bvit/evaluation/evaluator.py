"""Evaluation of one model as often as wanted: each condition and policy is compiled once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import PyTree
from tqdm import tqdm

from bvit.evaluation import cost
from bvit.evaluation.evaluate import Outcome, evaluate, make_classify, make_corrupt, put_batch
from bvit.models.inputs import Policy


class Evaluator:
    """Classifies a test set under every condition and policy, and measures what that costs.

    Attributes:
      costs: policy → "tokens", and after `measure` "gflops" and "images_per_s" too.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[], Iterator[dict[str, np.ndarray]]],
        *,
        conditions: Sequence[str],
        policies: Sequence[Policy],
        num_images: int,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int,
        mesh: Mesh,
    ) -> None:
        """Builds the functions; nothing is computed yet.

        Args:
          model: of `bvit.models.create`.
          batches: opens the test set, see `evaluate`.
          conditions: names in `bvit.image.conditions`.
          policies: what the model does with blurry patches.
          num_images: size of the test set, for the progress bar.
          image_size: side of the pictures, in pixels.
          mean: normalisation of the pixels.
          std: normalisation of the pixels.
          seed: of the test blurs.
          mesh: whose devices share a batch.
        """
        self._model, self._batches, self._mesh = model, batches, mesh
        self._num_images, self._image_size = num_images, image_size
        self._corruptions = {name: make_corrupt(name, seed=seed, mesh=mesh) for name in conditions}
        self._classifiers = {
            policy: make_classify(model, policy, mean=mean, std=std, seed=seed, mesh=mesh)
            for policy in policies
        }
        self.costs: dict[Policy, dict[str, Any]] = {
            policy: {
                "tokens": cost.num_tokens(model, policy, image_size),
                "gflops": None,
                "images_per_s": None,
            }
            for policy in policies
        }

    def __call__(self, variables: PyTree) -> list[Outcome]:
        """Classifies the whole test set; one outcome for each condition and policy."""
        with tqdm(
            total=self._num_images,
            desc="evaluating",
            unit="image",
            disable=jax.process_index() != 0,
            leave=False,
            dynamic_ncols=True,
        ) as bar:
            return evaluate(
                variables,
                self._batches(),
                self._corruptions,
                self._classifiers,
                mesh=self._mesh,
                progress=bar.update,
            )

    def measure(self, variables: PyTree) -> None:
        """Fills in the costs: operations of an image, and images a second on one batch."""
        batch = put_batch(next(self._batches()), self._mesh)
        corrupt = next(iter(self._corruptions.values()))
        pixels = corrupt(batch["image"], batch["index"])
        speeds = cost.images_per_second(self._classifiers, variables, pixels, batch["index"])
        for policy, speed in speeds.items():
            self.costs[policy]["images_per_s"] = speed
            self.costs[policy]["gflops"] = cost.gflops(
                self._model, variables, policy, self._image_size
            )
