"""Times functions and their peers alternately, and compares them with what is possible."""

import contextlib
import dataclasses
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from tqdm import tqdm

from bvit.evaluation.rows import align

Function = Callable[[], object]
Row = dict[str, Any]
# What suites are sized for; "tiny" has the rows of an accelerator, to try them out on a CPU.
Kind = Literal["cpu", "accelerator", "tiny"]

# The machine's own pace is measured on products and copies of such sizes: a product that takes
# milliseconds, a copy larger than the caches. On accelerators both need more to be worth a launch.
CPU_PRODUCT, CPU_COPY = 2048, 2**25
ACCELERATOR_PRODUCT, ACCELERATOR_COPY = 8192, 2**28
# What takes longer than this, in seconds, needs no run before it to warm the caches.
LONG = 0.25
# On accelerators a function is called for so many seconds before its results are waited for: so the
# time to launch a call does not count.
BURST = 0.1


class Unavailable(Exception):
    """A row can't be measured here; the text says why."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One function of bvit and what it is compared with.

    Attributes:
      suite: what it belongs to.
      name: what is computed.
      run: does it once; or returns the seconds it took, as a float, where it has a start that does
        not count. None where it can't be run.
      peer: the name of what it is compared with; "" for nothing.
      peer_run: does the same by the peer's means. None where it can't be run.
      bytes: that have to be read and written at least, once.
      flops: operations it is made of, a multiplication and an addition being two.
      why: why `run` or `peer_run` is None.
      images: how many images it takes; 0 where that means nothing.
      values: further entries of its row.
      group: cases of one group are prepared and measured together, and then let go: what they hold
        would leave the next ones less memory, or slower pages of it.
    """

    suite: str
    name: str
    run: Function | None
    peer: str = ""
    peer_run: Function | None = None
    bytes: float = 0
    flops: float = 0
    why: str = ""
    images: int = 0
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    group: str = ""


def on_accelerator() -> bool:
    """Whether JAX computes on something else than a CPU."""
    return jax.default_backend() != "cpu"


def compute_dtype() -> jnp.dtype:
    """What networks are measured in: bfloat16 on accelerators, float32 on CPUs."""
    return jnp.dtype(jnp.bfloat16 if on_accelerator() else jnp.float32)


def measure_groups(cases: Iterable[Case], *, repeats: int) -> Iterator[list[Row]]:
    """Rows of `measure`, group by group in the order they come; each is let go before the next."""
    for _, group in itertools.groupby(cases, key=lambda case: case.group):
        yield measure(list(group), repeats=repeats)


def measure(cases: Sequence[Case], *, repeats: int) -> list[Row]:
    """Times all cases, taking turns, and with them what the machine can do.

    Args:
      cases: what to time; a function that several share is timed once a round.
      repeats: rounds, after one that compiles. On a CPU a short function runs twice in each, and
        its second run counts; on an accelerator each is the mean over a burst of calls.

    Returns:
      For each case: suite, name, ms, images_per_s, peer, peer_ms, ratio (ms over peer_ms: below 1,
      bvit is faster), compile_s and peer_compile_s (the first call, less a later one), floor_ms and
      floor (the least time for its bytes or operations at the measured bandwidth or rate of matrix
      products, and which of the two), of_floor (floor_ms over ms: for operations the utilisation),
      gb_per_s and tflops (these two paces), why, and the case's own values. Times are medians; None
      is what could not be measured.
    """
    copy, bytes_a_copy = _copy()
    product, flops_a_product = _product()
    pairs = [(case.run, case.peer_run) for case in cases]
    functions = list(dict.fromkeys(f for pair in pairs for f in pair if f))
    first, failed = _first_calls([copy, product, *functions])
    times: dict[Function, list[float]] = {f: [] for f in first}
    calls = {f: _burst(f) for f in first} if on_accelerator() else dict.fromkeys(first, 1)
    for _ in tqdm(range(repeats), desc="measuring", leave=False):
        for function, seconds in times.items():
            took = _seconds(function, calls[function])
            # Whatever ran before left the caches to itself, which matters to short functions.
            again = not on_accelerator() and took <= LONG
            seconds.append(_seconds(function) if again else took)
    median = {f: statistics.median(seconds) for f, seconds in times.items()}
    paces = bytes_a_copy / median[copy], flops_a_product / median[product]
    return [_row(case, first, median, failed, *paces) for case in cases]


def _first_calls(functions: Sequence[Function]) -> tuple[dict[Function, float], dict]:
    """The seconds of the first calls, which compile, and the errors of those that failed."""
    first, failed = {}, {}
    for function in tqdm(functions, desc="compiling", leave=False):
        try:
            first[function] = _seconds(function)
        except Exception as error:  # one that runs out of memory, say, must not end the others
            failed[function] = reason(error)
    return first, failed


def reason(error: Exception) -> str:
    """Why something can't be measured, in one line."""
    text = str(error).partition("\n")[0]
    return text if isinstance(error, Unavailable) else f"{type(error).__name__}: {text}"


def _row(case: Case, first: dict, median: dict, failed: dict, bandwidth: float, rate: float) -> Row:
    own, peer = median.get(case.run), median.get(case.peer_run)
    moving, computing = case.bytes / bandwidth, case.flops / rate
    floor = max(moving, computing)
    kind = "bytes" if moving >= computing else "FLOPs"
    return {
        "suite": case.suite,
        "name": case.name,
        "ms": _milliseconds(own),
        "images_per_s": case.images / own if case.images and own else None,
        "peer": case.peer,
        "peer_ms": _milliseconds(peer),
        "ratio": own / peer if own and peer else None,
        "compile_s": max(0.0, first[case.run] - own) if own else None,
        "peer_compile_s": max(0.0, first[case.peer_run] - peer) if peer else None,
        "floor_ms": 1e3 * floor if floor else None,
        "floor": kind if floor else None,
        "of_floor": floor / own if floor and own else None,
        "gb_per_s": bandwidth / 1e9,
        "tflops": rate / 1e12,
        "why": case.why or failed.get(case.run) or failed.get(case.peer_run) or "",
        **case.values,
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _copy() -> tuple[Function, float]:
    size = ACCELERATOR_COPY if on_accelerator() else CPU_COPY
    values = jnp.zeros((size,), jnp.float32)
    double = jax.jit(lambda x: 2 * x)
    return lambda: double(values), 2.0 * values.nbytes


def _product() -> tuple[Function, float]:
    side = ACCELERATOR_PRODUCT if on_accelerator() else CPU_PRODUCT
    # Of random numbers: with constant ones a GPU draws less power, and is faster.
    matrix = jax.random.normal(jax.random.key(0), (side, side), compute_dtype())
    multiply = jax.jit(jnp.matmul)
    return lambda: multiply(matrix, matrix), 2.0 * side**3


def _burst(function: Function) -> int:
    """How many calls of a function follow one another."""
    return max(1, round(BURST / _seconds(function)))


def _seconds(function: Function, calls: int = 1) -> float:
    """How long a call takes, results included; the mean of several."""
    began = time.perf_counter()
    for _ in range(calls):
        result = function()
        if isinstance(result, float):
            return result
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / calls


def machine() -> str:
    """The devices, the CPU and the versions that times depend on."""
    device = jax.devices()[0]
    return (
        f"{len(jax.devices())} × {device.device_kind}, {cpu_cores()} cores of {cpu_name()}, "
        f"jax {jax.__version__}, networks in {compute_dtype()}"
    )


def cpu_name() -> str:
    """What the CPU calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


COLUMNS = (
    ("suite", "suite", "{}"),
    ("name", "name", "{}"),
    ("ms", "ms", "{:.2f}"),
    ("peer", "peer", "{}"),
    ("peer_ms", "its ms", "{:.2f}"),
    ("ratio", "ratio", "{:.3f}"),
    ("compile_s", "compile s", "{:.1f}"),
    ("floor_ms", "floor ms", "{:.2f}"),
    ("floor", "by", "{}"),
    ("of_floor", "floor / ms", "{:.0%}"),
    ("images_per_s", "images/s", "{:.0f}"),
)


def format_rows(rows: Sequence[Row]) -> str:
    """The rows as a table, and below it why some of their cells are empty."""
    cells = [
        ["–" if row[key] in (None, "") else form.format(row[key]) for key, _, form in COLUMNS]
        for row in rows
    ]
    table = align([[title for _, title, _ in COLUMNS], *cells])
    return "\n".join([table, *_reasons(rows)])


def _reasons(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if row["why"]:
            beside = f", beside {row['peer']}" if row["peer"] and row["ms"] is not None else ""
            yield f"not run: {row['name']}{beside}: {row['why']}"
