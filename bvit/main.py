"""Trains and evaluates one experiment: python -m bvit.main --config=configs/vit_mask.py."""

import ast
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from bvit import config as config_lib
from bvit import distributed
from bvit.checkpoint import CheckpointError, CheckpointWriteError
from bvit.data import UnreadableImageError
from bvit.experiment import prepare
from bvit.interrupt import Interrupted, SignalWatch, leave
from bvit.run import Run
from bvit.training.feed import DataWorkerError
from bvit.training.loop import train_and_evaluate
from bvit.training.meter import NonFiniteLossError

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment, e.g. configs/vit_mask.py; change a key of bvit/config.py with --config.key=value.",
)
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; by default runs/<config's name>.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of the first of several processes."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes; 1 to run alone.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of several processes this is, from 0.")

EXIT_BAD_INPUT = 2
EXIT_FAILED = 1


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the flags name."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        _exit(f"unexpected argument {argv[1]!r}; settings are --config.key=value.", EXIT_BAD_INPUT)
    _check_config_file()
    try:
        with SignalWatch() as signals:
            _main(signals)
    except Interrupted as stop:
        distributed.leave(f"{stop}; run the same command to go on.", stop.exit_code)


def _main(signals: SignalWatch) -> None:
    with _common_errors(EXIT_BAD_INPUT, ValueError):
        distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        with distributed.together():
            experiment = prepare(CONFIG.value)
            workdir = Path(WORKDIR.value or _default_workdir())
            run = Run.begin(workdir, config_lib.to_dict(CONFIG.value))
    with (
        contextlib.closing(run),
        _common_errors(EXIT_BAD_INPUT, CheckpointError),
        _common_errors(EXIT_FAILED, NonFiniteLossError),
        _local_errors(run, CheckpointWriteError, DataWorkerError, UnreadableImageError, OSError),
    ):
        train_and_evaluate(experiment, run, signals)


def _check_config_file() -> None:
    flag = flags.FLAGS["config"]
    if not flag.present:
        _exit("--config must name an experiment, e.g. --config=configs/vit_mask.py", EXIT_BAD_INPUT)
    path = config_flags.get_config_filename(flag).partition(":")[0]
    if not Path(path).is_file():
        _exit(f"--config must be a file: there is no {path}; see configs/.", EXIT_BAD_INPUT)


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
    path, _, arguments = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path("runs") / "-".join(filter(None, [Path(path).stem, arguments.replace("/", "_")]))


def _exit(message: str, code: int) -> None:
    if distributed.is_main():
        print(f"bvit: {message}", file=sys.stderr)
    sys.exit(code)


def parse(argv: Sequence[str]) -> list[str]:
    """Parses flags; reports a misspelt config key in one line that suggests the right one."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        # An error in a config file comes with its traceback; its last line is the message.
        last = str(error).strip().splitlines()[-1].removeprefix("ValueError: ")
        _exit(last, EXIT_BAD_INPUT)
    except (KeyError, AttributeError) as error:
        _exit(
            f"there is no such setting: {_plain(error)}; see bvit/config.py, and the file that "
            "--config names.",
            EXIT_BAD_INPUT,
        )
    except ValueError as error:
        _exit(f"the settings can't be read: {_plain(error)}", EXIT_BAD_INPUT)


def _plain(error: Exception) -> str:
    """An error's message in one line, without the quotes of a KeyError."""
    text = str(error.args[0])
    with contextlib.suppress(SyntaxError, ValueError):
        text = str(ast.literal_eval(text))
    return text.replace("\n", "; ")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
