"""Times functions and their peers alternately, and compares them with what is possible."""

import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from bvit.evaluation.rows import align

Function = Callable[[], object]
Row = dict[str, Any]

# The machine's own pace is measured on products and copies of such sizes: a product that takes
# milliseconds, a copy larger than the caches. On accelerators both need more to be worth a launch.
CPU_PRODUCT, CPU_COPY = 2048, 2**25
ACCELERATOR_PRODUCT, ACCELERATOR_COPY = 8192, 2**28
# What takes longer than this, in seconds, needs no run before it to warm the caches.
LONG = 0.25


class Unavailable(Exception):
    """A row can't be measured here; the text says why."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One function of bvit and what it is compared with.

    Attributes:
      suite: what it belongs to.
      name: what is computed.
      run: does it once, and waits for the result; or returns the seconds it took, as a float, where
        it has a start that does not count. None where it can't be run.
      peer: the name of what it is compared with; "" for nothing.
      peer_run: does the same by the peer's means. None where it can't be run.
      bytes: that have to be read and written at least, once.
      flops: operations it is made of, a multiplication and an addition being two.
      why: why `run` or `peer_run` is None.
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
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    group: str = ""


def on_accelerator() -> bool:
    """Whether JAX computes on something else than a CPU."""
    return jax.default_backend() != "cpu"


def compute_dtype() -> jnp.dtype:
    """What networks are measured in: bfloat16 on accelerators, float32 on CPUs."""
    return jnp.dtype(jnp.bfloat16 if on_accelerator() else jnp.float32)


def waiting(function: Function) -> Function:
    """The same, done when its result is there."""
    return lambda: jax.block_until_ready(function())


def measure_groups(cases: Iterable[Case], *, repeats: int) -> list[Row]:
    """Rows of `measure`, group by group in the order they come; each is let go before the next."""
    rows = []
    for _, group in itertools.groupby(cases, key=lambda case: case.group):
        rows += measure(list(group), repeats=repeats)
    return rows


def measure(cases: Sequence[Case], *, repeats: int) -> list[Row]:
    """Times all cases, taking turns, and with them what the machine can do.

    Args:
      cases: what to time; a function that several share is timed once a round.
      repeats: rounds, after one that compiles; in each a short function runs twice, and its second
        run counts.

    Returns:
      For each case: suite, name, ms, peer, peer_ms, ratio (ms over peer_ms: below 1, bvit is
      faster), compile_s (the first call of bvit's function, less a later one), floor_ms and floor
      (the least time for its bytes or operations at the measured bandwidth or rate of matrix
      products, and which of the two), of_floor (floor_ms over ms: for operations the utilisation),
      why, and the case's own values. Times are medians; None is what could not be measured.
    """
    copy, bytes_a_copy = _copy()
    product, flops_a_product = _product()
    pairs = [(case.run, case.peer_run) for case in cases]
    functions = list(dict.fromkeys(f for pair in pairs for f in pair if f))
    first = {f: _seconds(f) for f in tqdm(functions, desc="compiling", leave=False)}
    for reference in (copy, product):
        _seconds(reference)
    times: dict[Function, list[float]] = {f: [] for f in [copy, product, *functions]}
    for _ in tqdm(range(repeats), desc="measuring", leave=False):
        for function, seconds in times.items():
            took = _seconds(function)
            # Whatever ran before left the caches to itself, which matters to short functions.
            seconds.append(took if took > LONG else _seconds(function))
    median = {f: statistics.median(seconds) for f, seconds in times.items()}
    bandwidth, rate = bytes_a_copy / median[copy], flops_a_product / median[product]
    return [_row(case, first, median, bandwidth, rate) for case in cases]


def _row(case: Case, first: dict, median: dict, bandwidth: float, rate: float) -> Row:
    own, peer = median.get(case.run), median.get(case.peer_run)
    moving, computing = case.bytes / bandwidth, case.flops / rate
    floor = max(moving, computing)
    kind = "bytes" if moving >= computing else "FLOPs"
    return {
        "suite": case.suite,
        "name": case.name,
        "ms": _milliseconds(own),
        "peer": case.peer,
        "peer_ms": _milliseconds(peer),
        "ratio": own / peer if own and peer else None,
        "compile_s": max(0.0, first[case.run] - own) if own else None,
        "floor_ms": 1e3 * floor if floor else None,
        "floor": kind if floor else None,
        "of_floor": floor / own if floor and own else None,
        "why": case.why,
        **case.values,
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _copy() -> tuple[Function, float]:
    size = ACCELERATOR_COPY if on_accelerator() else CPU_COPY
    values = jnp.zeros((size,), jnp.float32)
    double = jax.jit(lambda x: 2 * x)
    return waiting(lambda: double(values)), 2.0 * values.nbytes


def _product() -> tuple[Function, float]:
    side = ACCELERATOR_PRODUCT if on_accelerator() else CPU_PRODUCT
    matrix = jnp.ones((side, side), compute_dtype())
    multiply = jax.jit(jnp.matmul)
    return waiting(lambda: multiply(matrix, matrix)), 2.0 * side**3


def _seconds(function: Function) -> float:
    began = time.perf_counter()
    result = function()
    return result if isinstance(result, float) else time.perf_counter() - began


def flops(function: Callable, *arguments: Any) -> float:
    """Operations of a jitted function, by XLA's count before it is compiled."""
    return float(function.lower(*arguments).cost_analysis()["flops"])


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
