"""What a trained run says of pictures that have no label: classes, blur, tokens used."""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

from bvit.evaluation import cost
from bvit.evaluation.evaluate import make_classify
from bvit.image.conditions import indexed_keys
from bvit.image.pixels import to_float
from bvit.image.scores import own_threshold
from bvit.image.sigma import estimate_sigma
from bvit.models import adaptive_apply, pyramid
from bvit.models.inputs import BETWEEN_LAYERS, Policy, shown_levels
from bvit.models.tokens import MERGE_LEVELS
from bvit.runs import TrainedRun
from bvit.training.sharding import make_mesh

# Policies whose budget can follow from the picture.
ADAPTIVE_POLICIES = ("drop", "pool", *MERGE_LEVELS)
# The shares of all patches that a picture may then cost: few, for each is compiled.
ADAPTIVE_SHARES = (0.25, 0.5, 0.75, 1.0)
# Batches of pictures that are sorted by budget at once: sorting leaves one batch of each budget
# incomplete, which should be few of them.
ADAPTIVE_BATCHES = 16


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What was found of some pictures.

    Attributes:
      probability: of each class, [n, num_classes].
      blurry: the share of patches that are under the run's threshold, [n].
      sigma: of the Gaussian blur that each picture has, estimated, in pixels of the crop, [n].
      tokens: patch tokens computed, [n]; a mean over the blocks where the number falls.
      policy: what became of the blurry patches of each picture.
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

    def __init__(
        self, run: TrainedRun, policy: Policy, *, adaptive: bool = False, batch_size: int = 32
    ) -> None:
        """Checks that the model can follow the policy, and compiles what adaptive budgets need.

        Args:
          run: the trained model.
          policy: what becomes of blurry patches.
          adaptive: give each picture the smallest of a few budgets that holds what is sharp in it,
            by the run's score and threshold; the policy's own budget is not used then.
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
        self.group = batch_size * (ADAPTIVE_BATCHES if adaptive else 1)
        self.seconds = 0.0
        budgets = adaptive_budgets(policy, self._size) if adaptive else (policy.budget,)
        self._policies = [dataclasses.replace(policy, budget=budget) for budget in budgets]
        self._tokens = {p: cost.num_tokens(run.model, p, self._size) for p in self._policies}
        self._adaptive, self._classify = adaptive, self._classifier(policy)
        if adaptive:
            blank = np.zeros((1, self._size, self._size, 3), np.float32)
            for budget in budgets:
                self._apply_adaptive(blank, (budget,))

    def __call__(self, pixels: UInt8[np.ndarray, "n s s 3"], first: int) -> Predictions:
        """Classifies some pictures; the first of them is number `first` of all."""
        index = np.arange(first, first + len(pixels), dtype=np.int32)
        image = np.asarray(to_float(pixels))
        begun = time.perf_counter()
        if self._adaptive:
            logits, budget = self._apply_adaptive(image, [p.budget for p in self._policies])
            by_budget = {p.budget: p for p in self._policies}
            policy = [by_budget[b] for b in budget.tolist()]
        else:
            logits = self._in_batches(self._classify, image, index)
            policy = self._policies * len(image)
        self.seconds += time.perf_counter() - begun
        blurry, sigma = self._in_batches(self._blur, image, index).T
        return Predictions(
            probability=np.asarray(jax.nn.softmax(logits)),
            blurry=blurry,
            sigma=sigma,
            tokens=np.array([self._tokens[p] for p in policy]),
            policy=policy,
        )

    def levels(
        self, pixels: UInt8[np.ndarray, "n s s 3"], policy: list[Policy], first: int
    ) -> Int[np.ndarray, "n hp wp"]:
        """What the policies show of each patch, as `bvit.models.inputs.shown_levels`.

        Where a policy computes every patch, those that count as blurry are at -1.
        """
        index = np.arange(first, first + len(pixels), dtype=np.int32)
        image = np.asarray(to_float(pixels))
        levels = None
        for one in set(policy):
            hides = one.name not in ("keep", *BETWEEN_LAYERS)
            shown = one if hides else self._blurry
            function = functools.partial(_levels, seed=self._run.config.seed, policy=shown)
            found = self._in_batches(function, image, index)
            mine = np.array([p == one for p in policy])[:, None, None]
            levels = found if levels is None else np.where(mine, found, levels)
        return levels

    def seconds_with_every_token(self, pixels: UInt8[np.ndarray, "n s s 3"], count: int) -> float:
        """How long `count` pictures would take without a policy: measured on one batch of these."""
        keep = Policy("keep", patch_size=self._policies[0].patch_size)
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
            mesh=make_mesh(devices=jax.local_devices()[:1]),
        )
        return functools.partial(classify, self._run.variables)

    def _apply_adaptive(self, image: np.ndarray, budgets: list[int]) -> tuple:
        return adaptive_apply(
            self._run.model,
            self._run.variables,
            image,
            budgets=budgets,
            policy=self._policies[0].name,
            score=self._blurry.score,
            threshold=self._blurry.threshold,
            mean=self._mean,
            std=self._std,
            chunk_size=self._batch,
        )

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


def adaptive_budgets(policy: Policy, image_size: int) -> tuple[int, ...]:
    """The budgets a picture is given one of: near quarters of its patches, ascending.

    Raises:
      ValueError: a policy that has no budgets.
    """
    if policy.name not in ADAPTIVE_POLICIES:
        raise ValueError(
            f"a budget that follows from the picture needs one of {', '.join(ADAPTIVE_POLICIES)}: "
            f"got {policy.name}."
        )
    side = image_size // policy.patch_size
    fewest, step = 1, 1
    if policy.name in MERGE_LEVELS:
        fewest = pyramid.fewest_tokens((side, side), MERGE_LEVELS[policy.name])
        step = pyramid.SPLIT_COST
    possible = np.arange(fewest, side * side + 1, step)
    wanted = np.array(ADAPTIVE_SHARES)[:, None] * side * side
    return tuple(np.unique(possible[np.abs(possible - wanted).argmin(axis=1)]).tolist())


def _blanking(policy: Policy, threshold: float | None) -> Policy:
    """The policy that blanks what counts as blurry: itself for `zero`, or else by the score."""
    if policy.name == "zero" and policy.budget is None:
        return policy
    if policy.threshold is not None:
        threshold = policy.threshold
    elif threshold is None:
        threshold = own_threshold(policy.score)
    return dataclasses.replace(policy, name="zero", budget=None, threshold=threshold)


@functools.partial(jax.jit, static_argnames="policy")
def _blur(image: Array, *, policy: Policy) -> Float[Array, "n 2"]:
    """The share of patches that a policy blanks, and the estimated sigma."""
    blank = shown_levels(image, policy) < 0
    return jnp.stack([blank.mean(axis=(1, 2)), estimate_sigma(image)], axis=1)


@functools.partial(jax.jit, static_argnames=("seed", "policy"))
def _levels(image: Array, index: Array, *, seed: int, policy: Policy) -> Int[Array, "n hp wp"]:
    return shown_levels(image, policy, keys=indexed_keys(jax.random.key(seed), index))
