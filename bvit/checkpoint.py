"""Checkpoints: written in the background, whole or not at all, checked before they are trusted.

A checkpoint has two items. `model` is all that using the model needs; `training` is what an
interrupted training needs besides, to go on.
"""

import collections
import contextlib
import functools
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from logging import ERROR
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jaxtyping import PyTree

from bvit import distributed
from bvit.config import read_json
from bvit.outputs import whole

MODEL, TRAINING = "model", "training"
# The parts of a state that the item `model` holds; all others are in `training`.
MODEL_PARTS = ("params", "model_state", "ema_params")
# Older checkpoints have one item with all parts.
SINGLE = "default"
# How tensorstore, which writes for orbax, names the reason of the operating system.
OS_ERROR = re.compile(r"\[os_error_code='(\d+)'\]")
MOST_SHOWN = 300
NOBODY_WAITS = "Event loop is closed"
SEAL_CHUNK = 2**24  # bytes read at a time for a checksum

State = Mapping[str, PyTree]


class CheckpointError(ValueError):
    """There are checkpoints, but none that this run can use."""


class CheckpointWriteError(Exception):
    """A checkpoint could not be written; the ones before it are unchanged."""


class Checkpoints:
    """The checkpoints of one run.

    Orbax writes each into a temporary folder and renames it once it is complete, so a killed run
    never leaves half of one under a step's name. Damage that comes later (a disk that flips bits, a
    copy cut short) is detected by the seal: the checksums of the files, written beside the
    checkpoint once it is complete.
    """

    def __init__(self, folder: Path, *, keep: int = 3) -> None:
        """Opens (or creates) the folder of a run's checkpoints.

        Args:
          folder: has one subfolder for each step.
          keep: how many of the newest to keep.
        """
        _silence_orbax()
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_handlers={
                item: ocp.PyTreeCheckpointHandler() for item in (MODEL, TRAINING, SINGLE)
            },
            # Otherwise one checkpoint with damaged metadata keeps all others from being read.
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=True, lightweight_initialize=True
            ),
        )
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[int, Future[None]] | None = None

    def save(self, step: int, state: State) -> None:
        """Starts writing a checkpoint; returns once the state has been copied off the devices.

        The files and their checksums are made in threads. Only a checkpoint that is still being
        written is waited for.

        Args:
          step: number of updates done.
          state: name of a part (`MODEL_PARTS` and others) → its arrays.
        """
        self.wait()
        items: dict[str, dict[str, PyTree]] = {}
        for name, part in state.items():
            items.setdefault(MODEL if name in MODEL_PARTS else TRAINING, {})[name] = part
        args = {item: ocp.args.PyTreeSave(parts) for item, parts in items.items()}
        with self._reported(step):
            # Orbax would save nothing beside a later one, which is damaged: training did not start
            # from it.
            for later in (other for other in self.steps() if other >= step):
                self._manager.delete(later)
            self._manager.save(step, args=ocp.args.Composite(**args))
        self._writing = step, self._background.submit(self._finish, step)

    def wait(self) -> None:
        """Waits until the checkpoint being written is complete and sealed.

        Raises:
          CheckpointWriteError: it could not be written, for example because the disk is full.
        """
        if self._writing is None:
            return
        (step, finished), self._writing = self._writing, None
        with self._reported(step):
            finished.result()

    def close(self) -> None:
        """Finishes what is being written."""
        try:
            self.wait()
        finally:
            # It repeats what `wait` has raised, in errors of many kinds.
            with contextlib.suppress(Exception):
                self._manager.close()
            self._background.shutdown()

    @contextlib.contextmanager
    def _reported(self, step: int) -> Iterator[None]:
        """Turns the many kinds of error that orbax raises when it can't write into one."""
        try:
            yield
        except Exception as error:
            raise CheckpointWriteError(
                f"the checkpoint of step {step} could not be written to {self._folder}: "
                f"{_reason(error)}. Those before it are kept; make room, then run the same command "
                "to go on."
            ) from error

    def _finish(self, step: int) -> None:
        """Waits until a checkpoint is complete, and seals it."""
        self._manager.wait_until_finished()
        if distributed.is_main():
            self._write_seal(step)

    def _write_seal(self, step: int) -> None:
        folder = self._folder / str(step)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sums = {path.relative_to(folder).as_posix(): _checksum(path) for path in files}
        with whole(self._seal(step)) as partial:
            partial.write_text(json.dumps(sums))
        for seal in self._folder.glob("*.seal"):
            if not (self._folder / seal.stem).exists():
                seal.unlink()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def restore_state(self, like: State) -> tuple[int, dict[str, PyTree]] | None:
        """Restores the newest undamaged checkpoint, to go on with a training.

        Args:
          like: the parts of the state, each array as a `jax.ShapeDtypeStruct` with its sharding.

        Returns:
          (step, state), or None if there is no checkpoint at all.

        Raises:
          CheckpointError: the newest is of another model, or all are damaged.
        """
        return self._newest(lambda step: self._restore(step, like))

    def restore_variables(self, like: State) -> tuple[int, dict[str, PyTree]] | None:
        """Restores the variables of the newest undamaged checkpoint, to use the model.

        Only the item `model` is read. Parameters are the averaged ones where they were kept.

        Args:
          like: the model's variables ("params" and other collections), each array as a
            `jax.ShapeDtypeStruct` with its sharding; without one, it becomes a NumPy array.

        Returns:
          (step, variables), or None if there is no checkpoint at all.

        Raises:
          CheckpointError: as for `restore_state`.
        """

        def read(step: int) -> dict[str, PyTree]:
            averaged = collections.ChainMap(*self._saved(step).values())["ema_params"]
            params, others = "params" if averaged is None else "ema_params", dict(like)
            parts = {params: others.pop("params"), "model_state": others}
            found = self._restore(step, parts)
            return {"params": found[params], **found["model_state"]}

        return self._newest(read, unread=(f"{TRAINING}/",))

    def _newest(
        self, read: Callable[[int], dict[str, PyTree]], unread: tuple[str, ...] = ()
    ) -> tuple[int, dict[str, PyTree]] | None:
        """Reads the newest undamaged checkpoint; `unread` are the files that don't matter to it."""
        steps = self.steps()
        for step in steps:
            damage = self._damage(step, unread)
            if damage is None:
                try:
                    return step, read(step)
                except CheckpointError:
                    raise
                except Exception as error:  # orbax raises many kinds for files it can't read
                    damage = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            if distributed.is_main():
                logging.warning(
                    "Checkpoint %d is damaged (%s); trying the one before.", step, damage
                )
        if steps:
            raise CheckpointError(
                f"every checkpoint in {self._folder} is damaged (steps {steps}); "
                "move the folder away to start again."
            )
        return None

    def _saved(self, step: int) -> dict[str, PyTree]:
        """Item → the parts it holds, their arrays described."""
        return {item: found.tree for item, found in self._manager.item_metadata(step).items()}

    def _restore(self, step: int, like: State) -> dict[str, PyTree]:
        """Restores those parts of a checkpoint that `like` names."""
        saved = self._saved(step)
        self._check_same_model(step, collections.ChainMap(*saved.values()), like)
        args = {}
        for item, parts in saved.items():
            if wanted := {name: like[name] for name in parts if name in like}:
                restore_args = jax.tree.map(_restore_args, wanted)
                args[item] = ocp.args.PyTreeRestore(
                    wanted, restore_args=restore_args, partial_restore=True
                )
        found = self._manager.restore(step, args=ocp.args.Composite(**args))
        return dict(collections.ChainMap(*(found[item] for item in args)))

    def _seal(self, step: int) -> Path:
        return self._folder / f"{step}.seal"

    def _damage(self, step: int, unread: tuple[str, ...]) -> str | None:
        """What is wrong with a checkpoint's files, found by the first process; None if nothing."""
        try:
            with distributed.together():
                if distributed.is_main():
                    self._check_seal(step, unread)
        except ValueError as error:
            return str(error)
        return None

    def _check_seal(self, step: int, unread: tuple[str, ...]) -> None:
        """Raises a ValueError if a checkpoint's files are not as they were written."""
        if not self._seal(step).exists():
            return  # the run ended between the checkpoint and its seal; orbax checks it
        sums = read_json(self._seal(step))
        if not isinstance(sums, dict) or not sums:
            raise ValueError(f"{self._seal(step)} is damaged: it holds no checksums")
        names = [name for name in sums if not name.startswith(unread)]
        changed = [n for n in names if _checksum(self._folder / str(step) / n) != sums[n]]
        if changed:
            raise ValueError(f"{len(changed)} of {len(names)} files changed, e.g. {changed[0]}")

    def _check_same_model(self, step: int, parts: State, like: State) -> None:
        saved = _shapes({name: part for name, part in parts.items() if name in like})
        wanted = _shapes(like)
        if saved == wanted:
            return
        odd = sorted(k for k in saved.keys() | wanted.keys() if saved.get(k) != wanted.get(k))
        name = odd[0]
        raise CheckpointError(
            f"the checkpoint in {self._folder / str(step)} is of another model: {len(odd)} arrays "
            f"differ, e.g. {name} is {saved.get(name)} in it and {wanted.get(name)} here; use the "
            "config it was trained with, or another --workdir."
        )


def _reason(error: Exception) -> str:
    """Why a file could not be written, in a line: orbax names it inside of hundreds of letters."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if found := OS_ERROR.search(str(error)):
        return os.strerror(int(found[1]))
    return " ".join(str(error).split())[-MOST_SHOWN:] or type(error).__name__


@functools.cache
def _silence_orbax() -> None:
    """Keeps what orbax prints about an error, besides raising it, from burying its one line.

    It logs the error with its traceback in each thread that the error passes. Then tensorstore
    prints, where nothing can be raised, that nobody waits for the other arrays any more.
    """
    logging.get_absl_handler().addFilter(
        lambda record: record.levelno < ERROR or "orbax" not in record.pathname
    )
    hook = sys.unraisablehook

    def shown(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and NOBODY_WAITS in str(error)):
            hook(unraisable)

    sys.unraisablehook = shown


def _restore_args(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    if leaf.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _checksum(path: Path) -> int | None:
    """CRC-32 of a file; None if it is gone."""
    if not path.is_file():
        return None
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(SEAL_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
