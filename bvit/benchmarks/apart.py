"""Functions in a process of their own: in one process two frameworks share threads and memory."""

import contextlib
import functools
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from bvit.benchmarks.harness import BURST, Function, Unavailable, reason


class Peers(NamedTuple):
    """What a process computes.

    Attributes:
      functions: by name; each starts its work once.
      wait: returns when what was started is done.
      in_bursts: whether many calls are timed together, as on accelerators.
    """

    functions: Mapping[str, Function]
    wait: Callable[[], object]
    in_bursts: bool


def start(names: Sequence[str], make: Callable[..., Peers], *arguments: Any) -> list[Function]:
    """Functions that run in another process, which starts when the first of them is called.

    Args:
      names: of the functions to return.
      make: makes the functions in that process.
      *arguments: of `make`.

    Returns:
      The functions. Each runs in that process and returns the seconds it took, or raises
      Unavailable with the reason. The process ends once no function is referenced any more.
    """
    process = _Process(make, arguments)
    return [functools.partial(process.seconds, name) for name in names]


class _Process:
    def __init__(self, make: Callable[..., Peers], arguments: Sequence[Any]) -> None:
        self._target = make, arguments
        self._connection: Connection | None = None

    def seconds(self, name: str) -> float:
        """Runs a function in the process; returns how long it took."""
        if self._connection is None:
            context = multiprocessing.get_context("spawn")
            self._connection, there = context.Pipe()
            context.Process(target=_serve, args=(there, *self._target), daemon=True).start()
            there.close()
        try:
            self._connection.send(name)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise Unavailable("its process ended") from error
        if isinstance(answer, str):
            raise Unavailable(answer)
        return answer


def _serve(connection: Connection, make: Callable[..., Peers], arguments: Sequence[Any]) -> None:
    """Makes the functions, and runs those asked for until the connection is closed."""
    calls: dict[str, int] = {}
    try:
        peers, why = make(*arguments), ""
    except Exception as error:  # of every kind: it is the answer to each call
        peers, why = None, reason(error)
    with contextlib.suppress(EOFError):
        while name := connection.recv():
            try:
                answer = why or _seconds(peers, name, calls)
            except Exception as error:
                answer = reason(error)
            connection.send(answer)


def _seconds(peers: Peers, name: str, calls: dict[str, int]) -> float:
    count = calls.get(name, 1)
    began = time.perf_counter()
    for _ in range(count):
        peers.functions[name]()
    peers.wait()
    seconds = (time.perf_counter() - began) / count
    # The first call compiles: its time says nothing about the next ones.
    calls[name] = max(1, round(BURST / seconds)) if peers.in_bursts and name in calls else 1
    return seconds
