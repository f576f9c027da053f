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
from bvit.evaluation.adaptive import AdaptiveClassifier
from bvit.evaluation.evaluate import Outcome, evaluate, make_classify, make_corrupt, put_batch
from bvit.tokens.inputs import Policy


class Evaluator:
    """Classifies a test set under every condition and policy, and measures what that costs.

    Attributes:
      costs: policy of one budget → "tokens", and after `measure` "gflops" and "images_per_s" too.
        A policy that chooses has those of its budgets, and is timed as it classifies.
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
        batch_size: int,
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
          batch_size: pictures that run together where they are sorted by budget.
          mean: normalisation of the pixels.
          std: normalisation of the pixels.
          seed: of the test blurs.
          mesh: whose devices share a batch.
        """
        self._model, self._batches, self._mesh = model, batches, mesh
        self._num_images, self._image_size = num_images, image_size
        self._corruptions = {name: make_corrupt(name, seed=seed, mesh=mesh) for name in conditions}
        options = {"mean": mean, "std": std, "mesh": mesh}
        self._classifiers = {
            policy: AdaptiveClassifier(model, policy, batch_size=batch_size, **options)
            if policy.budgets
            else make_classify(model, policy, seed=seed, **options)
            for policy in policies
        }
        self.costs: dict[Policy, dict[str, Any]] = {
            policy: {
                "tokens": cost.num_tokens(model, policy, image_size),
                "gflops": None,
                "images_per_s": None,
            }
            for chosen in policies
            for policy in chosen.static
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
        timed = {p: classify for p, classify in self._classifiers.items() if not p.budgets}
        speeds = cost.images_per_second(timed, variables, pixels, batch["index"])
        for policy, costs in self.costs.items():
            costs["images_per_s"] = speeds.get(policy)
            costs["gflops"] = cost.gflops(self._model, variables, policy, self._image_size)
