"""Answers for images without labels: classes, blur, tokens."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree, UInt8

from bvit.classify import check, num_tokens, patch_size
from bvit.evaluation.evaluator import make_classify, make_shown
from bvit.image.focus_map import focus_map
from bvit.image.pixels import to_float
from bvit.sharding import make_mesh
from bvit.tokens import Policy

# So many images run together on a CPU, in a thread for each core. The activations of more images do
# not fit the caches, and cores that share an operation wait for each other after it.
CPU_BATCH = 4
# A patch counts as blurry below this probability of focus. One without detail has 0.5, or with
# noise a little less.
BLURRY = 0.4


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What was found in some images.

    Attributes:
      probability: of each class, [n, num_classes].
      blurry: the share of patches that `bvit.focus_map` finds out of focus, [n].
      tokens: patch tokens that a block computes, the mean over the blocks, [n].
    """

    probability: Float[np.ndarray, "n classes"]
    blurry: Float[np.ndarray, " n"]
    tokens: Float[np.ndarray, " n"]


class Predictor:
    """Classifies images on one device, in batches of one size, so that nothing compiles twice."""

    def __init__(
        self,
        model: nn.Module,
        variables: PyTree,
        policy: Policy,
        *,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int = 0,
        batch_size: int = 32,
    ) -> None:
        """Checks that the model can follow the policy; compiles nothing yet.

        Args:
          model: of `bvit.models.create`.
          variables: the model's.
          policy: which tokens are computed.
          image_size: side of the images, in pixels.
          mean: normalisation of the pixels.
          std: normalisation of the pixels.
          seed: of a policy that draws.
          batch_size: images that run together; on a CPU at most `CPU_BATCH`.

        Raises:
          ValueError: the model can't follow the policy.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1: got {batch_size}.")
        check(model, policy)
        on_cpu = jax.default_backend() == "cpu"
        self._batch = min(batch_size, CPU_BATCH) if on_cpu else batch_size
        # Elsewhere the second thread prepares a batch while the device computes.
        self._pool = ThreadPoolExecutor(os.cpu_count() if on_cpu else 2)
        self._tokens = num_tokens(model, policy, image_size)
        classify = make_classify(
            model,
            policy,
            mean=mean,
            std=std,
            seed=seed,
            mesh=make_mesh(devices=jax.local_devices()[:1]),
        )

        @jax.jit
        def answer(variables: PyTree, pixels: Array, index: Array) -> tuple[Array, Array]:
            image = to_float(pixels)
            blurry = focus_map(image, patch_size=patch_size(model)) < BLURRY
            logits = classify(variables, image, index)
            return jax.nn.softmax(logits), blurry.mean(axis=(1, 2))

        pixels = jax.ShapeDtypeStruct((self._batch, image_size, image_size, 3), np.uint8)
        index = jax.ShapeDtypeStruct((self._batch,), np.int32)
        # Compiled once, and not in each thread.
        self._program = functools.cache(
            lambda: functools.partial(answer.lower(variables, pixels, index).compile(), variables)
        )
        where = make_shown(model, policy, mean=mean, std=std, seed=seed)
        self._shown = functools.partial(where, variables)

    def __call__(self, pixels: UInt8[np.ndarray, "n s s 3"], first: int) -> Predictions:
        """Classifies some images; the first of them is number `first` of all."""
        return self.begin(pixels, first)()

    def begin(self, pixels: UInt8[np.ndarray, "n s s 3"], first: int) -> Callable[[], Predictions]:
        """Starts to classify some images; returns a function that waits for the answers.

        Until it is called, the host can do other work, such as reading the next images.
        """
        answer = self._program()
        batches = self._batches(pixels, first)
        begun = self._pool.map(lambda batch: jax.device_get(answer(*batch)), batches)

        def answers() -> Predictions:
            parts = zip(*begun, strict=True)
            probability, blurry = (np.concatenate(part)[: len(pixels)] for part in parts)
            return Predictions(probability, blurry, np.full(len(pixels), self._tokens))

        return answers

    def shown(
        self, pixels: UInt8[np.ndarray, "n s s 3"], first: int
    ) -> Int[np.ndarray, "n rows columns"]:
        """The number of the token that shows each patch, -1 for none."""
        parts = [self._shown(to_float(part), index) for part, index in self._batches(pixels, first)]
        return np.concatenate(jax.device_get(parts))[: len(pixels)]

    def _batches(
        self, pixels: UInt8[np.ndarray, "n s s 3"], first: int
    ) -> Iterator[tuple[UInt8[np.ndarray, "b s s 3"], Int[np.ndarray, " b"]]]:
        """Batches of images, of one size, and their numbers; zeros fill the last one."""
        for start in range(0, len(pixels), self._batch):
            part = pixels[start : start + self._batch]
            padded = np.pad(part, [(0, self._batch - len(part)), (0, 0), (0, 0), (0, 0)])
            yield padded, first + start + np.arange(self._batch, dtype=np.int32)
