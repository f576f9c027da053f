"""Deblur or not: what a model gains from pictures that are deblurred first, and what that costs.

Every picture is classified as it is stored, and again after each deblurring, so that differences
are paired; the time and the operations of the deblurring count.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.extend.core import jaxprs_in_params
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from bvit.evaluation import cost
from bvit.evaluation.evaluator import EvalResult, make_classify, make_corrupt
from bvit.evaluation.statistics import paired_difference, wilson_interval
from bvit.image.conditions import DEBLURRING, split_deblurring
from bvit.image.deblur import deblur_gaussian
from bvit.sharding import per_image
from bvit.tokens import Policy

DIRECT = "direct"
# The sigma that deblurring is timed with where it must be told one; no time depends on it.
TIMED_SIGMA = 1.5

Row = dict[str, Any]
Costs = dict[str, dict[str, float]]


def methods(conditions: Sequence[str]) -> tuple[str, ...]:
    """The ways of deblurring among the conditions, in their order there; () if there are none."""
    found = dict.fromkeys(split_deblurring(name)[0] for name in conditions)
    return tuple(method for method in found if method)


def measure(
    model: nn.Module,
    variables: PyTree,
    batch: dict[str, Array],
    conditions: Sequence[str],
    policy: Policy,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    mesh: Mesh,
) -> Costs:
    """Measures what classification costs, directly and after each deblurring of the conditions.

    The methods take turns on one batch, see `cost.images_per_second`.

    Args:
      model: of `bvit.models.create`.
      variables: the model's.
      batch: of `evaluate.put_batch`.
      conditions: of which at least one deblurs.
      policy: what the model does with blurry patches.
      mean: normalisation of the pixels.
      std: normalisation of the pixels.
      seed: of the test blurs.
      mesh: whose devices share the batch.

    Returns:
      For "direct" and each method: "ms" and "gflops" of one picture, deblurring and forward pass.
    """
    found = methods(conditions)
    pictures = next(before for method, before in map(split_deblurring, conditions) if method)
    pixels = make_corrupt(pictures, seed=seed, mesh=mesh)(batch["image"], batch["index"])
    classify = make_classify(model, policy, mean=mean, std=std, seed=seed, mesh=mesh)
    functions = {DIRECT: classify}
    for method in found:
        restore = jax.jit(per_image(lambda x, method=method: _deblur(method, x), mesh))
        functions[method] = lambda v, x, index, restore=restore: classify(v, restore(x), index)
    speeds = cost.images_per_second(functions, variables, pixels, batch["index"])
    size = pixels.shape[1]
    forward = cost.gflops(model, variables, policy, size)
    extra = {DIRECT: 0.0, **{method: gflops(method, size) for method in found}}
    return {
        name: {"ms": 1000 / speed, "gflops": forward + extra[name]}
        for name, speed in speeds.items()
    }


def gflops(method: str, image_size: int) -> float:
    """Billions of floating-point operations to deblur one square RGB picture.

    As XLA counts them, but for two things that it gets wrong: of a loop it counts one turn, and of
    a transform of several axes it multiplies their logarithms. Here all turns count, and
    5 n log2(n) for a complex transform of n values, half of that for a real one.

    Args:
      method: one of `bvit.image.conditions.DEBLURRING`.
      image_size: side of the picture, in pixels.
    """
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    with jax.disable_jit():  # loops are unrolled
        traced = jax.jit(lambda x: _deblur(method, x)).trace(image)
        total = traced.lower().cost_analysis()["flops"]
    counted: dict[str, float] = {}
    for equation in _transforms(traced.jaxpr.jaxpr):
        alike = str((equation.invars[0].aval, equation.params))
        if alike not in counted:
            counted[alike] = _operations(equation) - _by_xla(equation)
        total += counted[alike]
    return float(total) / 1e9


def _deblur(method: str, image: Array) -> Array:
    name, blind = DEBLURRING[method]
    return deblur_gaussian(image, None if blind else TIMED_SIGMA, method=name)


def _transforms(jaxpr: Any) -> list[Any]:
    """The Fourier transforms in a program, also within its parts."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive is jax.lax.fft_p:
            found.append(equation)
        for part in jaxprs_in_params(equation.params):
            found += _transforms(part)
    return found


def _operations(equation: Any) -> float:
    """By the usual count of a fast Fourier transform."""
    lengths = equation.params["fft_lengths"]
    values = math.prod(lengths)
    real = equation.params["fft_type"] not in (jax.lax.FftType.FFT, jax.lax.FftType.IFFT)
    times = math.prod(equation.invars[0].aval.shape[: -len(lengths)])
    return times * 5 * values * math.log2(values) / (2 if real else 1)


def _by_xla(equation: Any) -> float:
    aval = equation.invars[0].aval
    transform = jax.jit(lambda x: equation.primitive.bind(x, **equation.params))
    return transform.lower(jax.ShapeDtypeStruct(aval.shape, aval.dtype)).cost_analysis()["flops"]


def make_rows(outcomes: Sequence[EvalResult], costs: Costs) -> list[Row]:
    """Sums up the pictures that were deblurred, and what they were before it.

    Args:
      outcomes: of `evaluate`, of one policy.
      costs: of `measure`.

    Returns:
      For each kind of picture and way of classifying it: "pictures", "method" ("direct" without
      deblurring), "top1" with its interval "ci95", "n", "ms" and "gflops"; "difference" to "direct"
      on the same pictures and its "difference_ci95" (None for "direct"); and "right", which
      pictures were right, for comparisons with other models (see `unpack`).
    """
    by_condition = {outcome.condition: outcome.correct() for outcome in outcomes}
    deblurred = [split_deblurring(name) for name in by_condition if split_deblurring(name)[0]]
    rows = []
    for pictures in dict.fromkeys(before for _, before in deblurred):
        direct = by_condition.get(pictures)
        if direct is not None:
            rows.append(_row(pictures, DIRECT, direct, None, costs))
        for method, before in deblurred:
            if before == pictures:
                right = by_condition[f"{method}:{before}"]
                rows.append(_row(pictures, method, right, direct, costs))
    return rows


def _row(
    pictures: str, method: str, right: np.ndarray, direct: np.ndarray | None, costs: Costs
) -> Row:
    difference, interval = (None, None) if direct is None else paired_difference(right, direct)
    return {
        "pictures": pictures,
        "method": method,
        "top1": float(right.mean()),
        "ci95": list(wilson_interval(int(right.sum()), len(right))),
        "n": len(right),
        "difference": difference,
        "difference_ci95": None if interval is None else list(interval),
        **costs[method],
        "right": np.packbits(right).tobytes().hex(),
    }


def unpack(row: Row) -> np.ndarray:
    """Which pictures a row has right, in the order of their indices, bool [n]."""
    bits = np.frombuffer(bytes.fromhex(row["right"]), np.uint8)
    return np.unpackbits(bits, count=row["n"]).astype(bool)
