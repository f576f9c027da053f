"""What a policy costs: floating-point operations, images per second."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, PyTree

from bvit.classify import classify
from bvit.tokens import Policy

# Timed passes over the same batch; the median of so many is steady to a few per cent.
REPEATS = 5


def gflops(model: nn.Module, variables: PyTree, policy: Policy, image_size: int) -> float:
    """Billions of floating-point operations for one image, from XLA's own count for a CPU.

    XLA gives no count on some other backends; so the figure is the same wherever the model runs. A
    multiplication and an addition count as two, so the figure is twice the multiply-accumulates
    that some model tables call FLOPs. It includes the focus measure.

    Args:
      model: of `bvit.models.create`.
      variables: the model's, or their shapes.
      policy: which tokens are computed.
      image_size: side of the image, in pixels.
    """

    def forward(variables: PyTree, image: Array) -> Array:
        key = jax.random.key(0) if policy.draws else None
        return classify(model, variables, image, policy, key=key)

    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    with jax.default_device(_cpu()):
        analysis = jax.jit(forward).lower(shapes, image).cost_analysis()
    return float(analysis["flops"]) / 1e9


def _cpu() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise RuntimeError(
            "operations are counted on a CPU, which JAX_PLATFORMS leaves out: add it, as in "
            "JAX_PLATFORMS=cuda,cpu."
        ) from error


def images_per_second(
    functions: dict[Any, Callable[[PyTree, Array, Array], Array]],
    variables: PyTree,
    pixels: Array,
    index: Array,
) -> dict[Any, float]:
    """Measures classifiers, by policy for example, on one batch on the devices, from pixels on.

    They alternate, so that a machine whose speed drifts treats them alike; each figure is the
    median of `REPEATS` passes after one that compiles.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in functions}
    for repeat in range(REPEATS + 1):
        for name, run in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(run(variables, pixels, index))
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: len(index) / float(np.median(times)) for name, times in seconds.items()}
