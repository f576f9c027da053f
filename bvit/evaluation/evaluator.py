"""Exact, paired accuracy over conditions × token policies.

Every test image is counted once, whatever the batch size or the number of devices: the last batch
is padded and the padding masked. What is done to test image i follows from (seed, condition, i)
alone, so that every model and policy sees identical pixels and their differences are paired.
"""

import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from bvit import distributed
from bvit.classify import Inputs, forward, num_tokens, prepare, shown
from bvit.evaluation import cost
from bvit.image.conditions import apply_condition, drawn_by, indexed_keys
from bvit.image.pixels import to_float
from bvit.sharding import batch_sharding, get_rows, per_image, put_rows
from bvit.tokens import Policy

# Keeps the keys of test images apart from those of training, which are folded from the same seed.
EVALUATION_STREAM = zlib.crc32(b"evaluation") & 0x7FFFFFFF


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """What a model answered for every test image under one condition and policy.

    Attributes:
      condition: what was done to the images.
      policy: which tokens were computed.
      index: which test images, ascending; int32 [n].
      rank: how many classes scored above the true one (0: top-1 right), int32 [n].
      label: the true class, int32 [n].
      predicted: the class that scored highest, int32 [n].
      confidence: the probability of that class, float32 [n].
      loss: the cross-entropy, float32 [n].
    """

    condition: str
    policy: Policy
    index: np.ndarray
    rank: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray

    def correct(self, k: int = 1) -> np.ndarray:
        """Whether the true class is among the first k; bool [n]."""
        return self.rank < k


def label_rank(logits: Float[Array, "n c"], label: Int[Array, " n"]) -> Int[Array, " n"]:
    """The place of the true class in the order of the logits, 0 for the first.

    Ties go to the lower class, as in argmax. An image with a logit that is not finite ranks last:
    NaN compares as false and would otherwise count as right.
    """
    own = jnp.take_along_axis(logits, label[:, None], axis=1)
    lower = jnp.arange(logits.shape[1]) < label[:, None]
    rank = jnp.sum((logits > own) | ((logits == own) & lower), axis=1)
    return jnp.where(jnp.isfinite(logits).all(axis=1), rank, logits.shape[1])


def answer(logits: Float[Array, "n c"], label: Int[Array, " n"]) -> Float[Array, "n 5"]:
    """Rank, label, predicted class, its probability and the cross-entropy of each image.

    One array, so that it is sent to the host once; float32 holds whole numbers up to 2²⁴ exactly.
    """
    log_probability = jax.nn.log_softmax(logits)
    loss = -jnp.take_along_axis(log_probability, label[:, None], axis=1)[:, 0]
    confidence = jnp.exp(log_probability.max(axis=1))
    columns = (label_rank(logits, label), label, logits.argmax(axis=1), confidence, loss)
    return jnp.stack([column.astype(jnp.float32) for column in columns], axis=1)


def make_corrupt(condition: str, *, seed: int, mesh: Mesh) -> Callable[[Array, Array], Array]:
    """Builds (uint8 images, test indices) → pixels in [0, 1] under a condition, jitted."""
    stream = zlib.crc32(drawn_by(condition).encode()) & 0x7FFFFFFF

    def corrupt(image: Array, index: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), EVALUATION_STREAM)
        keys = indexed_keys(jax.random.fold_in(key, stream), index)
        apply = per_image(lambda k, x: apply_condition(condition, k, to_float(x)), mesh)
        return apply(keys, image)

    return jax.jit(corrupt)


def make_classify(
    model: nn.Module,
    policy: Policy,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    mesh: Mesh,
) -> Callable[[PyTree, Array, Array], Array]:
    """Builds (variables, pixels in [0, 1], test indices) → logits under a policy, jitted."""

    def classify(variables: PyTree, image: Array, index: Array) -> Array:
        def inputs(key: Array, image: Array) -> Inputs:
            return prepare(model, image, policy, mean=mean, std=std, key=key)

        keys = indexed_keys(jax.random.key(seed), index)
        return forward(model, variables, per_image(inputs, mesh)(keys, image), policy)

    return jax.jit(classify)


def make_shown(
    model: nn.Module,
    policy: Policy,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
) -> Callable[[PyTree, Array, Array], Array]:
    """Builds (variables, pixels in [0, 1], indices) → the token that shows each patch, jitted."""

    def where(variables: PyTree, image: Array, index: Array) -> Array:
        key = indexed_keys(jax.random.key(seed), index)
        return shown(model, variables, image, policy, mean=mean, std=std, key=key)

    return jax.jit(where)


Classify = Callable[[PyTree, Array, Array], Array]


def evaluate(
    variables: PyTree,
    batches: Iterable[dict[str, np.ndarray]],
    corruptions: Mapping[str, Callable[[Array, Array], Array]],
    classifiers: Mapping[Policy, Classify],
    *,
    mesh: Mesh,
    progress: Callable[[int], None] = lambda images: None,
) -> list[EvalResult]:
    """Classifies every image under every condition and policy.

    Args:
      variables: the model's.
      batches: the `bvit.sharding.local_rows` of each batch of the test set: "image", "label",
        "index" and "mask" (False: padding) of equal length.
      corruptions: condition → function of `make_corrupt`.
      classifiers: policy → function of `make_classify`.
      mesh: whose devices share a batch.
      progress: called with the number of rows of each whole batch that is done.

    Returns:
      One result for each condition and policy, over the images of all processes.
    """
    answer_of = jax.jit(answer, out_shardings=batch_sharding(mesh))
    indices: list[Array] = []
    answers: dict[tuple[str, Policy], list[np.ndarray]] = {
        (name, policy): [] for name in corruptions for policy in classifiers
    }

    def read(running: dict[tuple[str, Policy], Array]) -> None:
        for cell, found in running.items():
            answers[cell].append(get_rows(found))

    running: dict[tuple[str, Policy], Array] = {}
    for rows in batches:
        index = np.where(rows["mask"], rows["index"], np.int32(-1))
        batch = put_rows({"image": rows["image"], "label": rows["label"], "index": index}, mesh)
        indices.append(batch["index"])
        for condition, corrupt in corruptions.items():
            pixels = corrupt(batch["image"], batch["index"])
            started = {
                (condition, policy): answer_of(
                    classify(variables, pixels, batch["index"]), batch["label"]
                )
                for policy, classify in classifiers.items()
            }
            read(running)  # while the next ones run: the queue stays short, and never empty
            running = started
        progress(len(batch["label"]))
    read(running)
    return _gather([get_rows(index) for index in indices], answers)


def _gather(
    indices: list[np.ndarray], answers: dict[tuple[str, Policy], list[np.ndarray]]
) -> list[EvalResult]:
    """Puts the rows of all processes together: each image once, ascending, without padding (-1)."""
    columns = [np.concatenate(indices)[:, None]]
    columns += [np.concatenate(parts).view(np.int32) for parts in answers.values()]
    rows = multihost_utils.process_allgather(np.concatenate(columns, axis=1), tiled=True)
    index, first = np.unique(rows[:, 0], return_index=True)
    index, first = index[index >= 0], first[index >= 0]
    found = np.ascontiguousarray(rows[first, 1:].T).view(np.float32)
    return [
        EvalResult(*cell, index, *part[:3].astype(np.int32), *part[3:])
        for cell, part in zip(answers, np.split(found, len(answers)), strict=True)
    ]


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
          policies: which tokens the model computes.
          num_images: size of the test set, for the progress bar.
          image_size: side of the images, in pixels.
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
                "tokens": num_tokens(model, policy, image_size),
                "gflops": None,
                "images_per_s": None,
            }
            for policy in policies
        }

    def __call__(self, variables: PyTree) -> list[EvalResult]:
        """Classifies the whole test set; one result for each condition and policy."""
        with (
            distributed.progress_bar("evaluating", "image", self._num_images, leave=False) as bar,
            contextlib.closing(self._batches()) as batches,
        ):
            return evaluate(
                variables,
                batches,
                self._corruptions,
                self._classifiers,
                mesh=self._mesh,
                progress=lambda rows: bar.update(min(rows, bar.total - bar.n)),
            )

    def measure(self, variables: PyTree) -> None:
        """Fills in the costs: operations of an image, and images a second on one batch."""
        with contextlib.closing(self._batches()) as batches:
            batch = put_rows(next(batches), self._mesh)
        corrupt = next(iter(self._corruptions.values()))
        pixels = corrupt(batch["image"], batch["index"])
        speeds = cost.images_per_second(self._classifiers, variables, pixels, batch["index"])
        for policy, costs in self.costs.items():
            costs["images_per_s"] = speeds[policy]
            costs["gflops"] = cost.gflops(self._model, variables, policy, self._image_size)
