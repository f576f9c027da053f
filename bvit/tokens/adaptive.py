"""Each image at the smallest of a few token budgets that its blur allows, without recompiling."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Shaped

from bvit.image.focus_measures import DEFAULT_MEASURE, FocusMeasure, own_threshold
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD, check_image, normalize
from bvit.tokens import plans as tokens


class Adaptive(NamedTuple):
    """What `adaptive_apply` returns, in the order of its images."""

    logits: Float[np.ndarray, "n num_classes"]
    budget: Int[np.ndarray, "n"]


def adaptive_apply(
    model: nn.Module,
    variables: PyTree,
    image: Float[ArrayLike, "n h w 3"],
    *,
    budgets: Sequence[int],
    policy: str = "merge",
    score: str | FocusMeasure = DEFAULT_MEASURE,
    threshold: float | None = None,
    block_score: str = "mean",
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    chunk_size: int = 32,
    sharding: Sharding | None = None,
) -> Adaptive:
    """Classifies images, spending on each the smallest budget that holds what is sharp in it.

    An image needs the tokens that the policy takes at this threshold when nothing limits it. It
    gets the smallest budget that is no less, or else the largest, and its best patches fill it:
    its logits are those of `tokens.plan(image, budget=…)`. Images are grouped by budget on the host
    and run in chunks of one size, padded where a group ends. So there is one compilation for the
    scores and one for each budget, however many images come; many at once waste least on padding.

    Args:
      model: a ViT of `bvit.models.create`.
      variables: the model's.
      image: RGB in [0, 1], before normalisation, of the model's image size; at least one.
      budgets: the numbers of patch tokens to choose from, such as (49, 97, 196).
      policy: "drop", "pool", "merge" or "merge2", as in `bvit.tokens.plans.plan`.
      score: as there.
      threshold: as there; None is the score's own, of `bvit.image.focus_measures.THRESHOLDS`.
      block_score: as there.
      mean: of each channel, taken away from the pixels before the model sees them.
      std: of each channel, divided by.
      chunk_size: images that run together.
      sharding: how a chunk lies on the devices of this process; None is the default device.

    Returns:
      The logits and the budget of each image.

    Raises:
      ValueError: not a batch of RGB images, no budgets, or what `bvit.tokens.plans.plan` raises.
    """
    check_image(image, channels=3)
    if np.ndim(image) != 4 or not len(image):
        raise ValueError(
            f"image must be one batch, [n, height, width, 3], of at least one image: got shape "
            f"{np.shape(image)}; give a single image its batch axis with image[None]."
        )
    if not budgets or chunk_size < 1:
        raise ValueError(
            "there must be at least one budget, and at least one image in a chunk: got "
            f"budgets={budgets}, chunk_size={chunk_size}."
        )
    threshold = own_threshold(score) if threshold is None else threshold
    image, budgets = np.asarray(image), sorted(budgets)
    options = {
        "patch_size": model.patch_size,
        "policy": policy,
        "score": score,
        "block_score": block_score,
    }
    for budget in budgets:
        # In the abstract: one that can't be is refused before anything is computed.
        jax.eval_shape(partial(tokens.plan, budget=budget, **options), image[:1])
    in_chunks = partial(_in_chunks, image, size=chunk_size, sharding=sharding)
    choose = partial(_choose, threshold, budgets=tuple(budgets), **options)
    chosen = in_chunks(choose, np.arange(len(image)))
    logits = np.empty((len(image), model.num_classes), np.float32)
    for budget in np.unique(chosen).tolist():
        classify = partial(
            _classify,
            variables,
            model=model,
            budget=budget,
            mean=tuple(mean),
            std=tuple(std),
            **options,
        )
        index = np.flatnonzero(chosen == budget)
        logits[index] = in_chunks(classify, index)
    return Adaptive(logits, chosen)


def smallest_budget(
    image: Float[ArrayLike, "*b h w 3"],
    *,
    budgets: Sequence[int],
    threshold: float | Float[ArrayLike, ""],
    **options: object,
) -> Int[Array, "*b"]:
    """The smallest budget that holds what is sharp in each image, or else the largest.

    Args:
      image: RGB in [0, 1].
      budgets: the numbers of patch tokens to choose from, ascending; static.
      threshold: as in `bvit.tokens.plans.plan`.
      **options: patch_size, policy, score and block_score, as there.
    """
    plan = tokens.plan(image, threshold=threshold, **options)
    needed = plan.mask[..., : plan.tile.shape[-1]].sum(-1)
    choices = jnp.asarray(budgets, jnp.int32)
    return choices[jnp.minimum(jnp.searchsorted(choices, needed), len(budgets) - 1)]


def _in_chunks(
    image: Float[np.ndarray, "n h w 3"],
    function: Callable[[Array], Array],
    index: Int[np.ndarray, "m"],
    *,
    size: int,
    sharding: Sharding | None,
) -> Shaped[np.ndarray, "m ..."]:
    """Applies a function to the images named, `size` at a time; zeros fill the last chunk."""
    results = []
    for start in range(0, len(index), size):
        chunk = image[index[start : start + size]]
        padding = [(0, size - len(chunk))] + [(0, 0)] * (image.ndim - 1)
        results.append(function(jax.device_put(np.pad(chunk, padding), sharding)))
    # Waiting only here: all chunks are under way by now.
    return np.concatenate(jax.device_get(results))[: len(index)]


_STATIC = ("patch_size", "policy", "score", "block_score")


@partial(jax.jit, static_argnames=(*_STATIC, "budgets"))
def _choose(threshold, image, **options):
    return smallest_budget(image, threshold=threshold, **options)


@partial(jax.jit, static_argnames=(*_STATIC, "model", "budget", "mean", "std"))
def _classify(variables, image, *, model, budget, mean, std, **options):
    plan = tokens.plan(image, budget=budget, **options)
    return model.apply(variables, normalize(image, mean, std), plan=plan)
