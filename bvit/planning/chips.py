"""Accelerators by the figures of their makers, and devices as people type them."""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping

# JAX takes this share of a GPU's memory when it starts, unless XLA_PYTHON_CLIENT_MEM_FRACTION says
# otherwise (docs.jax.dev/en/latest/gpu_memory_allocation.html).
GPU_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, by its maker's figures.

    Attributes:
      peak: dtype of the products → operations a second, without sparsity.
      memory: bytes that a program may use.
      bandwidth: bytes a second from and to the memory.
      link: bytes a second to the other devices, one way.
      source: of these figures.
    """

    peak: Mapping[str, float]
    memory: float
    bandwidth: float
    link: float
    source: str


def _gpu(half: float, single: float, memory: float, bandwidth: float, link: float, source: str):
    # By default, JAX multiplies float32 matrices in TF32.
    peak = {"bfloat16": half * 1e12, "float16": half * 1e12, "float32": single * 1e12}
    return Chip(peak, GPU_SHARE * memory * 1e9, bandwidth * 1e9, link * 1e9, source)


def _tpu(half: float, memory: float, bandwidth: float, link: float, source: str):
    # By default, JAX multiplies float32 matrices in one bfloat16 pass.
    peak = dict.fromkeys(("bfloat16", "float16", "float32"), half * 1e12)
    return Chip(peak, memory * 1e9, bandwidth * 1e9, link * 1e9, source)


# TFLOP/s in 16 bits (GPUs: and in TF32), GB, GB/s of memory, GB/s of links one way, which is half
# of what the makers state for both. GPUs are the SXM modules; their links are NVLink, in a host.
TPUS: Mapping[str, Chip] = {
    "v5e": _tpu(197, 16, 819, 200, "cloud.google.com/tpu/docs/v5e"),
    "v5p": _tpu(459, 102, 2765, 600, "cloud.google.com/tpu/docs/v5p"),
    "v6e": _tpu(918, 32, 1640, 400, "cloud.google.com/tpu/docs/v6e"),
}
GPUS: Mapping[str, Chip] = {
    "A100": _gpu(312, 156, 80, 2039, 300, "nvidia.com/en-us/data-center/a100"),
    "H100": _gpu(989, 495, 80, 3350, 450, "nvidia.com/en-us/data-center/h100"),
    "H200": _gpu(989, 495, 141, 4800, 450, "nvidia.com/en-us/data-center/h200"),
}


@dataclasses.dataclass(frozen=True)
class Devices:
    """Devices of one kind.

    Attributes:
      text: as people type them.
      count: how many.
      chip: of which kind; None for simulated ones, which have no speed of their own.
      is_tpu: whether libtpu can compile for them.
    """

    text: str
    count: int
    chip: Chip | None
    is_tpu: bool


def parse(text: str) -> Devices:
    """Reads "v5e:4x4" (a TPU slice), "gpu:8xH100", or "cpu:8" (simulated devices).

    Raises:
      ValueError: for anything else; it says what there is.
    """
    kind, _, shape = text.partition(":")
    if kind in TPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        return Devices(text, math.prod(map(int, shape.split("x"))), TPUS[kind], True)
    count, _, name = shape.partition("x")
    if kind == "gpu" and name in GPUS and re.fullmatch(r"[1-9]\d*", count):
        return Devices(text, int(count), GPUS[name], False)
    if kind == "cpu" and re.fullmatch(r"[1-9]\d*", shape):
        return Devices(text, int(shape), None, False)
    near = difflib.get_close_matches(name if kind == "gpu" else kind, [*TPUS, *GPUS], n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise ValueError(
        f"--devices must be a TPU slice ({', '.join(TPUS)}) as v5e:4x4, GPUs ({', '.join(GPUS)}) "
        f"as gpu:8xH100, or simulated devices as cpu:8: got {text!r}{hint}"
    )
