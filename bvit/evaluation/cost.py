"""What a policy costs: tokens, floating-point operations, pictures per second."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, PyTree

from bvit.tokens.inputs import Policy, for_policy, prepare

# Timed passes over the same batch; the median of so many is steady to a few per cent.
REPEATS = 5


def num_tokens(model: nn.Module, policy: Policy, image_size: int) -> float:
    """Patch tokens computed for one picture; where their number falls on the way, the blocks' mean.

    The class token is not counted. A CNN has no tokens: for it this counts the patches that `zero`
    tells apart.
    """
    _, plan = _prepared(policy, image_size)
    total = (image_size // policy.patch_size) ** 2
    model = for_policy(model, policy)
    if policy.name == "tome":
        left = [total]
        while len(left) < model.depth:
            left.append(left[-1] - min(policy.budget, left[-1] // 2))
        return float(np.mean(left))
    if plan is None and policy.name != "cluster":
        return total
    fewer = policy.budget if plan is None else plan.num_tokens
    early = model.plan_after
    return (early * total + (model.depth - early) * fewer) / model.depth if early else fewer


def gflops(model: nn.Module, variables: PyTree, policy: Policy, image_size: int) -> float:
    """Billions of floating-point operations for one picture, from XLA's own count.

    A multiplication and an addition count as two, so the figure is twice the multiply-accumulates
    that some model tables call FLOPs. Scoring the patches (under 1 %) is not in it.

    Args:
      model: of `bvit.models.create`.
      variables: the model's, or their shapes.
      policy: which tokens are computed.
      image_size: side of the picture, in pixels.
    """
    image, plan = _prepared(policy, image_size)
    extra = {} if plan is None else {"plan": plan}

    model = for_policy(model, policy)

    def forward(variables: PyTree, image: Array, extra: PyTree) -> Array:
        return model.apply(variables, image, train=False, **extra)

    analysis = jax.jit(forward).lower(variables, image, extra).cost_analysis()
    return float(analysis["flops"]) / 1e9


def images_per_second(
    functions: dict[Any, Callable[[PyTree, Array, Array], Array]],
    variables: PyTree,
    pixels: Array,
    index: Array,
) -> dict[Any, float]:
    """Measures the classifiers, by policy say, on one batch on the devices, scoring included.

    They take turns, so that a machine whose speed drifts treats them alike; each figure is
    the median of `REPEATS` passes after one that compiles.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in functions}
    for repeat in range(REPEATS + 1):
        for name, classify in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(classify(variables, pixels, index))
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: len(index) / float(np.median(times)) for name, times in seconds.items()}


def _prepared(policy: Policy, image_size: int) -> tuple[PyTree, PyTree]:
    """Shapes of a model's input and plan for one picture; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))

    def fn(image: Array, keys: Array) -> PyTree:
        return prepare(image, policy, mean=(0.0,) * 3, std=(1.0,) * 3, keys=keys)

    return jax.eval_shape(fn, image, keys)
