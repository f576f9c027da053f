"""The run directory: whose it is, what it holds, and what it must not lose.

config.json    the settings          checkpoints/   one folder a step, with seals
metrics.jsonl  a line a logged step  tensorboard/   the same as curves, and pictures
results.json   the final table       figures/       plots and pictures of it
classes.json   names of the classes     evaluations.jsonl   a line an evaluation
answers.npz    the true class's rank for each test picture, by condition and policy
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from absl import logging

from bvit import config as config_lib
from bvit import distributed


class RunDirectory:
    """A run's folder, locked while a run works in it; its first process looks after that."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Opens a new run's folder, or that of an earlier part of the same run.

        Args:
          path: where it is, or is to be.
          settings: the config as plain values.

        Raises:
          ValueError: the folder holds a run of other settings, or something that is no run, or
            another process is working in it.
        """
        self.path = path
        self._lock: IO[str] | None = None
        if not distributed.is_main():
            return
        _check_ours(path, settings)
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path)
        self.figures.mkdir(exist_ok=True)
        write_json(path / "config.json", settings)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        """Folder of the plots."""
        return self.path / "figures"

    @property
    def results(self) -> Path:
        """File of the final table; it exists once the run is finished."""
        return self.path / "results.json"

    def close(self) -> None:
        """Lets other processes work in the folder."""
        if self._lock:
            self._lock.close()


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives the name under which to write a file, which takes its own once all of it is there."""
    partial = path.with_suffix(".partial")
    yield partial
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    with whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")


def _check_ours(path: Path, settings: dict[str, Any]) -> None:
    if not path.exists() or not any(path.iterdir()):
        return
    saved = path / "config.json"
    if not saved.exists():
        raise ValueError(
            f"--workdir must be a run directory or a new folder: {path} holds other files; "
            "choose another --workdir."
        )
    changed = config_lib.differences(json.loads(saved.read_text()), settings)
    if changed:
        listing = "; ".join(f"{key} was {a!r}, now {b!r}" for key, (a, b) in changed.items())
        raise ValueError(
            f"{path} holds a run of another config: {listing}. "
            "Choose another --workdir, or delete that run to start again."
        )


def _lock(path: Path) -> IO[str] | None:
    # Held by the open file: the kernel lets go of it when the process ends, however it ends.
    file = (path / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        raise ValueError(
            f"another run ({holder}) is working in {path}: wait for it, or choose another "
            "--workdir."
        ) from error
    except OSError as error:  # some network file systems have no locks
        logging.warning("%s can't be locked (%s): start no second run in it.", path, error)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
