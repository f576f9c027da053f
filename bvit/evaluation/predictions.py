"""What a trained run says of pictures that have no label: classes, blur, tokens used."""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree, Shaped, UInt8

from bvit.evaluation import cost
from bvit.evaluation.adaptive import AdaptiveClassifier
from bvit.evaluation.evaluate import make_classify
from bvit.image.conditions import indexed_keys
from bvit.image.focus_measures import own_threshold
from bvit.image.pixels import normalize, to_float
from bvit.image.sigma import estimate_sigma
from bvit.report.overlays import draw_clusters, draw_levels
from bvit.run import Run
from bvit.sharding import make_mesh
from bvit.tokens.inputs import SHOW_EVERYTHING, Policy, for_policy, shown_levels


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What was found of some pictures.

    Attributes:
      probability: of each class, [n, num_classes].
      blurry: the share of patches that are under the run's threshold, [n].
      sigma: of the Gaussian blur that each picture has, estimated, in pixels of the crop, [n].
      tokens: patch tokens computed, [n]; a mean over the blocks where the number falls.
      policy: what became of the blurry patches of each picture, with the budget that it got.
    """

    probability: Float[np.ndarray, "n classes"]
    blurry: Float[np.ndarray, " n"]
    sigma: Float[np.ndarray, " n"]
    tokens: Float[np.ndarray, " n"]
    policy: list[Policy]


class Predictor:
    """Classifies pictures on one device, in batches of one size, so that nothing compiles twice.

    Attributes:
      group: how many pictures to give it at once.
      seconds: spent on classification so far.
    """

    def __init__(self, run: Run, policy: Policy, *, batch_size: int = 32) -> None:
        """Checks that the model can follow the policy, and compiles what adaptive budgets need.

        Args:
          run: the trained model.
          policy: what becomes of blurry patches.
          batch_size: pictures that run together.

        Raises:
          ValueError: the policy has no budget and needs one, or one that can't be.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1: got {batch_size}.")
        c = run.config
        self._run, self._size, self._batch = run, c.data.image_size, batch_size
        self._mean, self._std = tuple(c.data.mean), tuple(c.data.std)
        self._blurry = _blanking(policy, c.tokens.threshold)
        self._mesh = make_mesh(devices=jax.local_devices()[:1])
        self.group = batch_size * (AdaptiveClassifier.group(batch_size) if policy.budgets else 1)
        self.seconds = 0.0
        self._policy = policy
        self._tokens = {p: cost.num_tokens(run.model, p, self._size) for p in policy.static}
        if policy.budgets:
            self._classify = AdaptiveClassifier(
                run.model,
                policy,
                mean=self._mean,
                std=self._std,
                batch_size=batch_size,
                mesh=self._mesh,
            )
            self._classify.warm_up(run.variables, self._size)
        else:
            self._classify = self._classifier(policy)

    def __call__(self, pixels: UInt8[np.ndarray, "n s s 3"], first: int) -> Predictions:
        """Classifies some pictures; the first of them is number `first` of all."""
        index = np.arange(first, first + len(pixels), dtype=np.int32)
        image = np.asarray(to_float(pixels))
        begun = time.perf_counter()
        if self._policy.budgets:
            logits, budget = self._classify(self._run.variables, image)
            by_budget = {p.budget: p for p in self._policy.static}
            policy = [by_budget[b] for b in budget.tolist()]
        else:
            logits = self._in_batches(self._classify, image, index)
            policy = [self._policy] * len(image)
        self.seconds += time.perf_counter() - begun
        blurry, sigma = self._in_batches(self._blur, image, index).T
        return Predictions(
            probability=np.asarray(jax.nn.softmax(logits)),
            blurry=blurry,
            sigma=sigma,
            tokens=np.array([self._tokens[p] for p in policy]),
            policy=policy,
        )

    def draw(
        self, pixels: UInt8[np.ndarray, "n s s 3"], first: int
    ) -> list[Float[np.ndarray, "h w 3"]]:
        """Draws what the policy makes of some pictures, of which the first is number `first`.

        Where it computes every patch, those that count as blurry are dark.
        """
        index = np.arange(first, first + len(pixels), dtype=np.int32)
        image = np.asarray(to_float(pixels))
        if self._policy.name == "cluster":
            return list(map(draw_clusters, image, self._in_batches(self._cluster, image, index)))
        shown = self._blurry if self._policy.name in SHOW_EVERYTHING else self._policy
        levels = functools.partial(_levels, seed=self._run.config.seed, policy=shown)
        return list(map(draw_levels, image, self._in_batches(levels, image, index)))

    def _cluster(self, image: Array, index: Array) -> Int[Array, "n hp wp"]:
        del index
        model = for_policy(self._run.model, self._policy)
        return _clusters(self._run.variables, image, model=model, mean=self._mean, std=self._std)

    def seconds_with_every_token(self, pixels: UInt8[np.ndarray, "n s s 3"], count: int) -> float:
        """How long `count` pictures would take without a policy: measured on one batch of these."""
        keep = Policy("keep", patch_size=self._policy.patch_size)
        image = np.resize(np.asarray(to_float(pixels)), (self._batch, *pixels.shape[1:]))
        index = np.arange(self._batch, dtype=np.int32)
        classify = self._classifier(keep)
        functions = {keep: lambda variables, *batch: classify(*batch)}
        speed = cost.images_per_second(functions, self._run.variables, image, index)[keep]
        return -(-count // self._batch) * self._batch / speed

    def _classifier(self, policy: Policy) -> Callable[[Array, Array], Array]:
        """(images, their numbers) → logits."""
        classify = make_classify(
            self._run.model,
            policy,
            mean=self._mean,
            std=self._std,
            seed=self._run.config.seed,
            mesh=self._mesh,
        )
        return functools.partial(classify, self._run.variables)

    def _blur(self, image: Array, index: Array) -> Array:
        del index
        return _blur(image, policy=self._blurry)

    def _in_batches(
        self, function: Callable[[Array, Array], Array], image: np.ndarray, index: np.ndarray
    ) -> Shaped[np.ndarray, "n ..."]:
        """Applies a function of (images, their numbers) batch by batch; zeros fill the last one."""
        results = []
        for start in range(0, len(image), self._batch):
            part = slice(start, start + self._batch)
            short = self._batch - len(index[part])
            padded = np.pad(image[part], [(0, short), (0, 0), (0, 0), (0, 0)])
            results.append(function(padded, np.pad(index[part], (0, short))))
        return np.concatenate(jax.device_get(results))[: len(image)]


def _blanking(policy: Policy, threshold: float | None) -> Policy:
    """The policy that blanks what counts as blurry: itself for `zero`, or else by the score."""
    if policy.name == "zero" and policy.budget is None:
        return policy
    if policy.threshold is not None:
        threshold = policy.threshold
    elif threshold is None:
        threshold = own_threshold(policy.score)
    return dataclasses.replace(policy, name="zero", budget=None, budgets=(), threshold=threshold)


@functools.partial(jax.jit, static_argnames="policy")
def _blur(image: Array, *, policy: Policy) -> Float[Array, "n 2"]:
    """The share of patches that a policy blanks, and the estimated sigma."""
    blank = shown_levels(image, policy) < 0
    return jnp.stack([blank.mean(axis=(1, 2)), estimate_sigma(image)], axis=1)


@functools.partial(jax.jit, static_argnames=("model", "mean", "std"))
def _clusters(
    variables: PyTree, image: Array, *, model: nn.Module, mean: tuple, std: tuple
) -> Int[Array, "n hp wp"]:
    image = normalize(image, mean, std)
    _, kept = model.apply(variables, image, train=False, mutable=["intermediates"])
    (cluster,) = kept["intermediates"]["cluster"]
    return cluster.reshape(len(image), *model.grid)


@functools.partial(jax.jit, static_argnames=("seed", "policy"))
def _levels(image: Array, index: Array, *, seed: int, policy: Policy) -> Int[Array, "n hp wp"]:
    return shown_levels(image, policy, keys=indexed_keys(jax.random.key(seed), index))
