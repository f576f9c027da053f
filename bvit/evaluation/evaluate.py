"""Exact, paired accuracy over conditions × token policies.

Every test image is counted once, whatever the batch size or the number of devices: the last batch
is padded and the padding masked. What is done to test image i follows from (seed, condition, i)
alone, so that every model and policy sees identical pixels and their differences are paired.
"""

import dataclasses
import functools
import itertools
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from bvit.evaluation.adaptive import AdaptiveClassifier
from bvit.image.conditions import apply_condition, drawn_by, indexed_keys
from bvit.image.pixels import to_float
from bvit.sharding import batch_sharding, per_image
from bvit.tokens.inputs import ON_PIXELS, Policy, for_policy, prepare, used_tokens

# Keeps the keys of test images apart from those of training, which are folded from the same seed.
EVALUATION_STREAM = zlib.crc32(b"evaluation") & 0x7FFFFFFF


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a model said of every test image under one condition and policy.

    Attributes:
      condition: what was done to the pictures.
      policy: what the model did with blurry patches.
      index: which test images, ascending; int64 [n].
      rank: how many classes scored above the true one (0: top-1 right), int32 [n].
      used: under a threshold, how many places of the budget each picture filled, int32 [n].
      budget: where it follows from the picture, which it got, int [n]; and …
      images_per_s: … how many pictures that was in a second, sorting and padding included.
    """

    condition: str
    policy: Policy
    index: np.ndarray
    rank: np.ndarray
    used: np.ndarray | None = None
    budget: np.ndarray | None = None
    images_per_s: float | None = None

    def correct(self, k: int = 1) -> np.ndarray:
        """Whether the true class is among the first k; bool [n]."""
        return self.rank < k


def label_rank(logits: Float[Array, "n c"], label: Int[Array, " n"]) -> Int[Array, " n"]:
    """The place of the true class in the order of the logits, 0 for the first.

    Ties go to the lower class, as in argmax. A picture with a logit that is not finite ranks last:
    NaN compares as false and would otherwise count as right.
    """
    own = jnp.take_along_axis(logits, label[:, None], axis=1)
    lower = jnp.arange(logits.shape[1]) < label[:, None]
    rank = jnp.sum((logits > own) | ((logits == own) & lower), axis=1)
    return jnp.where(jnp.isfinite(logits).all(axis=1), rank, logits.shape[1])


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

    model = for_policy(model, policy)

    def classify(variables: PyTree, image: Array, index: Array) -> Array:
        inputs = per_image(lambda k, x: prepare(x, policy, mean=mean, std=std, keys=k), mesh)
        image, plan = inputs(indexed_keys(jax.random.key(seed), index), image)
        extra = {} if plan is None else {"plan": plan}
        return model.apply(variables, image, train=False, **extra)

    return jax.jit(classify)


Classify = Callable[[PyTree, Array, Array], Array]


def evaluate(
    variables: PyTree,
    batches: Iterable[dict[str, np.ndarray]],
    corruptions: Mapping[str, Callable[[Array, Array], Array]],
    classifiers: Mapping[Policy, Classify | AdaptiveClassifier],
    *,
    mesh: Mesh,
    progress: Callable[[int], None] = lambda images: None,
) -> list[Outcome]:
    """Classifies every picture under every condition and policy.

    Args:
      variables: the model's.
      batches: this process's share of the test set: "image", "label", "index" and "mask" (False:
        padding) of equal length.
      corruptions: condition → function of `make_corrupt`.
      classifiers: policy → function of `make_classify`, or an `AdaptiveClassifier` for a policy of
        several budgets: it is given several batches at once.
      mesh: whose devices share a batch.
      progress: told how many pictures are done after each batch.

    Returns:
      One outcome for each condition and policy, over the pictures of all processes.
    """
    found = {(name, policy): _Found() for name in corruptions for policy in classifiers}
    indices = []
    for group in _groups(batches, classifiers):
        group = [put_batch(batch, mesh) for batch in group]
        indices += [jnp.where(batch["mask"], batch["index"], -1) for batch in group]
        for condition, corrupt in corruptions.items():
            pixels = [corrupt(batch["image"], batch["index"]) for batch in group]
            for policy, classify in classifiers.items():
                done = found[condition, policy]
                if policy.budgets:
                    # What is still under way would count as this one's time.
                    jax.block_until_ready([one.rank[-1:] for one in found.values()])
                    _classify_together(classify, variables, pixels, group, done)
                else:
                    _classify_each(classify, policy, variables, pixels, group, done, mesh)
            jax.block_until_ready(done.rank[-1])  # keeps the queue, and memory, short
        progress(int(sum(batch["mask"].sum() for batch in group)))
    index = _on_host(indices)
    order = np.argsort(index, kind="stable")[np.count_nonzero(index < 0) :]
    return [
        Outcome(
            condition,
            policy,
            index[order],
            _on_host(done.rank)[order],
            used=_on_host(done.used)[order] if done.used else None,
            budget=np.concatenate(done.budget)[order] if done.budget else None,
            images_per_s=len(index) / done.seconds if done.seconds else None,
        )
        for (condition, policy), done in found.items()
    ]


@dataclasses.dataclass
class _Found:
    """What was found so far under one condition and policy: as `Outcome`, in batches."""

    rank: list[Array] = dataclasses.field(default_factory=list)
    used: list[Array] = dataclasses.field(default_factory=list)
    budget: list[np.ndarray] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


def _groups(
    batches: Iterable[dict[str, np.ndarray]], policies: Iterable[Policy]
) -> Iterator[tuple[dict[str, np.ndarray], ...]]:
    """As many batches as are classified at once: one, unless a policy sorts pictures."""
    batches = iter(batches)
    sorts = any(policy.budgets for policy in policies)
    for first in batches:
        count = AdaptiveClassifier.group(len(first["index"])) if sorts else 1
        yield first, *itertools.islice(batches, count - 1)


def _classify_each(classify, policy, variables, pixels, group, done, mesh):
    counts = policy.threshold is not None and policy.name not in ON_PIXELS
    for image, batch in zip(pixels, group, strict=True):
        done.rank.append(_rank_of(classify(variables, image, batch["index"]), batch["label"]))
        if counts:
            done.used.append(_used(image, policy=policy, mesh=mesh))


def _classify_together(classify, variables, pixels, group, done):
    image = np.concatenate(jax.device_get(pixels))
    classify.warm_up(variables, image.shape[1])
    begun = time.perf_counter()
    logits, budget = classify(variables, image)
    done.seconds += time.perf_counter() - begun
    label = np.concatenate(jax.device_get([batch["label"] for batch in group]))
    done.rank.append(_rank_of(logits, label))
    done.budget.append(budget)


_rank_of = jax.jit(label_rank)


@functools.partial(jax.jit, static_argnames=("policy", "mesh"))
def _used(image: Array, *, policy: Policy, mesh: Mesh) -> Array:
    return per_image(lambda image: used_tokens(image, policy), mesh)(image)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """Lays this process's rows of a batch on its devices, as one array over all processes."""
    return {
        name: jax.make_array_from_process_local_data(batch_sharding(mesh), rows)
        for name, rows in batch.items()
    }


def _on_host(parts: Sequence[Array]) -> np.ndarray:
    """Sharded arrays of all processes, end to end, on every host."""
    if not parts:
        return np.zeros((0,), np.int32)
    return np.concatenate([multihost_utils.process_allgather(part, tiled=True) for part in parts])
