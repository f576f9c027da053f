"""Functions in a process of their own: two frameworks in one share its threads and its memory."""

import functools
import multiprocessing
import threading
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
    """Functions of a process that starts when the first of them is called.

    Args:
      names: of the functions that are wanted.
      make: makes all of them, there.
      *arguments: its arguments.

    Returns:
      The functions. Each does there what it is for, and returns the seconds that it took; it raises
      Unavailable where that can't be done. The process ends when none of them is left.
    """
    process = _Process(make, arguments)
    return [functools.partial(process.seconds, name) for name in names]


class _Process:
    def __init__(self, make: Callable[..., Peers], arguments: Sequence[Any]) -> None:
        self._target, self._lock = (make, arguments), threading.Lock()
        self._connection: Connection | None = None

    def seconds(self, name: str) -> float:
        """Has a function called there."""
        with self._lock:
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
    """Makes the functions, and calls them until nobody is left who may ask."""
    peers, why, calls = None, "", {}
    try:
        peers = make(*arguments)
    except Exception as error:  # of every kind: it is the answer to each call
        why = reason(error)
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        try:
            connection.send(why or _seconds(peers, name, calls))
        except Exception as error:
            connection.send(reason(error))


def _seconds(peers: Peers, name: str, calls: dict[str, int]) -> float:
    began = time.perf_counter()
    for _ in range(calls.get(name, 1)):
        peers.functions[name]()
    peers.wait()
    seconds = (time.perf_counter() - began) / calls.get(name, 1)
    if name not in calls:
        calls[name] = 1  # the first call compiles
    elif peers.in_bursts:
        calls[name] = max(1, round(BURST / seconds))
    return seconds
