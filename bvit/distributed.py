"""Several processes as one run: how they meet, what they agree on, and which one talks."""

import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int
from tqdm import tqdm

from bvit import interrupt

# Room for an error message that is sent to all processes.
MESSAGE_BYTES = 2048
# Seconds between two states of a progress bar: on a terminal (tqdm's default), and in a log file,
# which keeps every one of them.
ON_TERMINAL, IN_LOG = 0.1, 60.0


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes of the run, if there are any; the first thing asked of JAX.

    Without arguments JAX looks in the environment: it knows SLURM, Open MPI, Cloud TPU and
    Kubernetes (the latter where the package `kubernetes` is installed).

    Args:
      coordinator: host:port of the first process.
      num_processes: how many there are; 1 looks no further.
      process_id: which of them this is, from 0.

    Raises:
      ValueError: only some are given, or an environment that is known can't be used.
    """
    if num_processes == 1:
        return
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given) and None in given:
        raise ValueError(
            "--coordinator, --num_processes and --process_id go together: got "
            f"{coordinator}, {num_processes} and {process_id}; give all three or none."
        )
    # Signals are this project's own business: JAX's service would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        if coordinator is None:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(*given, cluster_detection_method="deactivate")
    except (ValueError, RuntimeError) as error:
        if coordinator is None and "coordinator_address should be defined" in str(error):
            return  # nothing found: this process is alone
        raise ValueError(
            f"could not join the other processes: {error} Give --coordinator, --num_processes and "
            "--process_id, or --num_processes=1 to run alone."
        ) from error


def is_main() -> bool:
    """Whether this is the process that talks, and writes what is written once."""
    return jax.process_index() == 0


def progress_bar(
    description: str, unit: str, total: int, *, initial: int = 0, leave: bool = True
) -> tqdm:
    """A progress bar of the first process; the others' show nothing.

    Args:
      description: what is under way.
      unit: what is counted.
      total: how many there are.
      initial: how many are done.
      leave: keep the finished bar in sight.
    """
    interval = ON_TERMINAL if sys.stderr.isatty() else IN_LOG
    return tqdm(
        desc=description,
        unit=unit,
        total=total,
        initial=initial,
        leave=leave,
        disable=not is_main(),
        dynamic_ncols=True,
        mininterval=interval,
        maxinterval=max(interval, 10),
    )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Makes a `ValueError` of one process one of all: alone, the others would wait for it for ever.

    All processes enter and leave it. The first message, by number of the process, is raised.
    """
    if jax.process_count() == 1:
        yield
        return
    message = ""
    try:
        yield
    except ValueError as error:
        message = str(error) if is_main() else f"process {jax.process_index()}: {error}"
    own = np.zeros(MESSAGE_BYTES, np.uint8)
    encoded = message.encode()[:MESSAGE_BYTES]
    own[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    for row in multihost_utils.process_allgather(own):
        if first := row.tobytes().rstrip(b"\0").decode(errors="ignore"):
            raise ValueError(first)


def greatest(value: int, mesh: Mesh) -> Int[Array, " 1"] | int:
    """The greatest of what the processes say; to be read later, so that nobody waits for it now."""
    if jax.process_count() == 1:
        return value
    place = NamedSharding(mesh, P(mesh.axis_names))
    said = jax.make_array_from_process_local_data(
        place, np.full(jax.local_device_count(), value, np.int32)
    )
    return _max(said)


_max = jax.jit(lambda said: said.max())


def leave(message: str, code: int) -> NoReturn:
    """Ends every process of the run at the same point, with one line of the first."""
    shown = message if is_main() else ""
    if jax.process_count() > 1:  # the others may still need this one
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()
    if shown:
        interrupt.leave(shown, code)
    interrupt.end(code)
