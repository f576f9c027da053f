"""Answers for images without labels: classes, blur, tokens."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree, Shaped, UInt8

from bvit.classify import check, num_tokens, patch_size
from bvit.evaluation.evaluator import make_classify, make_shown
from bvit.image.focus_measures import FOCUS_MEASURES, own_threshold
from bvit.image.pixels import to_float
from bvit.sharding import make_mesh
from bvit.tokens import Policy


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What was found in some images.

    Attributes:
      probability: of each class, [n, num_classes].
      blurry: the share of patches whose focus measure is under its threshold, [n].
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
        score: str,
        threshold: float | None = None,
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
          score: the focus measure by which a patch counts as blurry.
          threshold: its value from which a patch is sharp; None: the measure's own.
          seed: of a policy that draws.
          batch_size: images that run together.

        Raises:
          ValueError: the model can't follow the policy.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1: got {batch_size}.")
        check(model, policy)
        self._batch = batch_size
        self._tokens = num_tokens(model, policy, image_size)
        classify = make_classify(
            model,
            policy,
            mean=mean,
            std=std,
            seed=seed,
            mesh=make_mesh(devices=jax.local_devices()[:1]),
        )
        self._classify = functools.partial(classify, variables)
        self._blurry = functools.partial(
            _blurry,
            score=score,
            threshold=own_threshold(score) if threshold is None else threshold,
            side=patch_size(model),
        )
        where = make_shown(model, policy, mean=mean, std=std, seed=seed)
        self._shown = functools.partial(where, variables)

    def __call__(self, pixels: UInt8[np.ndarray, "n s s 3"], first: int) -> Predictions:
        """Classifies some images; the first of them is number `first` of all."""
        logits = self._in_batches(self._classify, pixels, first)
        blurry = self._in_batches(self._blurry, pixels, first)
        return Predictions(
            probability=jax.device_get(jax.nn.softmax(logits)),
            blurry=blurry,
            tokens=np.full(len(pixels), self._tokens),
        )

    def shown(
        self, pixels: UInt8[np.ndarray, "n s s 3"], first: int
    ) -> Int[np.ndarray, "n rows columns"]:
        """The number of the token that shows each patch, -1 for none."""
        return self._in_batches(self._shown, pixels, first)

    def _in_batches(
        self,
        function: Callable[[Array, Array], Array],
        pixels: UInt8[np.ndarray, "n s s 3"],
        first: int,
    ) -> Shaped[np.ndarray, "n ..."]:
        """Applies a function of (images, their numbers) batch by batch; zeros fill the last one."""
        results = []
        for start in range(0, len(pixels), self._batch):
            part = pixels[start : start + self._batch]
            padded = np.pad(part, [(0, self._batch - len(part)), (0, 0), (0, 0), (0, 0)])
            index = first + start + np.arange(self._batch, dtype=np.int32)
            results.append(function(to_float(padded), index))
        return np.concatenate(jax.device_get(results))[: len(pixels)]


@functools.partial(jax.jit, static_argnames=("score", "threshold", "side"))
def _blurry(
    image: Array, index: Array, *, score: str, threshold: float, side: int
) -> Float[Array, " n"]:
    """The share of blurry patches."""
    del index
    return (FOCUS_MEASURES[score](image, patch_size=side) < threshold).mean(axis=(1, 2))
