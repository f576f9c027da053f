"""Trains and evaluates one experiment: python -m bvit.main --config=configs/vit_mask.py."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import app, flags, logging

from bvit import config as config_lib
from bvit import config_flag, distributed
from bvit.arguments import EXIT_BAD_INPUT
from bvit.checkpoint import CheckpointError, CheckpointWriteError
from bvit.data import UnreadableImageError
from bvit.experiment import goes_on, prepare
from bvit.interrupt import Interrupted, SignalWatch, leave
from bvit.run import Run
from bvit.training.feed import DataWorkerError
from bvit.training.loop import train_and_evaluate
from bvit.training.meter import NonFiniteLossError

WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; by default runs/<config's name>.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of the first of several processes."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes; 1 to run alone.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of several processes this is, from 0.")

EXIT_FAILED = 1


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the flags name."""
    logging.set_verbosity(logging.WARNING)
    config_flag.check(argv)
    try:
        with SignalWatch() as signals:
            _main(signals)
    except Interrupted as stop:
        distributed.leave(f"{stop}; run the same command to go on.", stop.exit_code)


def _main(signals: SignalWatch) -> None:
    with _common_errors(EXIT_BAD_INPUT, ValueError):
        distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        with distributed.together():
            experiment = prepare(config_flag.CONFIG.value)
            workdir = Path(WORKDIR.value or _default_workdir())
            run = Run.begin(
                workdir,
                config_lib.to_dict(config_flag.CONFIG.value),
                goes_on=functools.partial(goes_on, experiment),
            )
    with (
        contextlib.closing(run),
        _common_errors(EXIT_BAD_INPUT, CheckpointError),
        _common_errors(EXIT_FAILED, NonFiniteLossError),
        _local_errors(run, CheckpointWriteError, DataWorkerError, UnreadableImageError, OSError),
    ):
        train_and_evaluate(experiment, run, signals)


@contextlib.contextmanager
def _common_errors(code: int, *kinds: type[Exception]) -> Iterator[None]:
    """Reports errors that all processes have as one line, without a traceback."""
    try:
        yield
    except kinds as error:
        distributed.leave(str(error), code)


@contextlib.contextmanager
def _local_errors(run: Run, *kinds: type[Exception]) -> Iterator[None]:
    """Reports errors that one process may have alone; it ends without waiting for the others."""
    try:
        yield
    except kinds as error:
        message = str(error)
        if isinstance(error, OSError) and error.strerror:
            where = error.filename or run.path
            message = (
                f"{error.strerror}: {where}. The checkpoints in {run.checkpoints} are kept; make "
                "room or mend the disk, then run the same command to go on."
            )
        leave(" ".join(message.split()), EXIT_FAILED)


def _default_workdir() -> Path:
    path, _, arguments = config_flag.named().partition(":")
    return Path("runs") / "-".join(filter(None, [Path(path).stem, arguments.replace("/", "_")]))


if __name__ == "__main__":
    app.run(main, flags_parser=config_flag.parse)
