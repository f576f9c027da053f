"""Checkpoints: written in the background, whole or not at all, checked before they are trusted."""

import contextlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from absl import logging
from jaxtyping import PyTree

from bvit import distributed

SEAL_CHUNK = 2**24  # bytes read at a time while a checkpoint is summed


def _checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of every file under a folder, by relative path."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            crc = 0
            with path.open("rb") as file:
                while chunk := file.read(SEAL_CHUNK):
                    crc = zlib.crc32(chunk, crc)
            sums[path.relative_to(folder).as_posix()] = crc
    return sums


class CheckpointError(ValueError):
    """There are checkpoints, but none that this run can go on from."""


class CheckpointWriteError(Exception):
    """A checkpoint could not be written; those before it are as they were."""


class Checkpoints:
    """The checkpoints of one run.

    Orbax writes each into a temporary folder and renames it when it is whole, so a killed run never
    leaves half of one under a step's name. What can still happen to a whole one afterwards (a disk
    that flips bits, a copy cut short) shows in its seal: the checksums of its files, written beside
    it once it is complete.
    """

    def __init__(self, folder: Path, *, keep: int = 3) -> None:
        """Opens (or creates) the folder of a run's checkpoints.

        Args:
          folder: where they lie, one subfolder a step.
          keep: the newest so many stay.
        """
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )
        self._unsealed: int | None = None

    def save(self, step: int, state: PyTree) -> None:
        """Starts writing a checkpoint; returns once the state has been copied off the devices."""
        self.wait()
        self._unsealed = step
        with self._told():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def wait(self) -> None:
        """Waits until the checkpoint under way is whole, and seals it.

        Raises:
          CheckpointWriteError: it could not be written, for want of space say.
        """
        if self._unsealed is None:
            return
        with self._told():
            self._manager.wait_until_finished()
            if distributed.is_main():
                self._write_seal(self._unsealed)
        self._unsealed = None

    def close(self) -> None:
        """Finishes what is under way."""
        try:
            self.wait()
        finally:
            self._manager.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Tells what orbax raises when it can't write, which is of many kinds, as one."""
        try:
            yield
        except Exception as error:
            step, self._unsealed = self._unsealed, None
            raise CheckpointWriteError(
                f"the checkpoint of step {step} could not be written to {self._folder}: "
                f"{str(error).splitlines()[0][-300:]}. Those before it are kept; make room, then "
                "run the same command to go on."
            ) from error

    def _write_seal(self, step: int) -> None:
        partial = self._seal(step).with_suffix(".partial")
        partial.write_text(json.dumps(_checksums(self._folder / str(step))))
        partial.replace(self._seal(step))
        for seal in self._folder.glob("*.seal"):
            if not (self._folder / seal.stem).exists():
                seal.unlink()

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def restore_newest(self, like: PyTree) -> tuple[int, PyTree] | None:
        """Restores the newest checkpoint that is undamaged.

        Args:
          like: shapes, dtypes and shardings of the state that is wanted (`jax.ShapeDtypeStruct`s).

        Returns:
          (step, state), or None if there is no checkpoint at all.

        Raises:
          CheckpointError: if the newest is of another model, or all are damaged.
        """
        steps = self.steps()
        for step in steps:
            damage = self._damage(step)
            if damage is None:
                try:
                    self._check_same_model(step, like)
                    return step, self._manager.restore(step, args=ocp.args.StandardRestore(like))
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

    def _seal(self, step: int) -> Path:
        return self._folder / f"{step}.seal"

    def _damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint's files, by the first process; None if nothing is."""
        try:
            with distributed.together():
                if distributed.is_main():
                    self._check_seal(step)
        except ValueError as error:
            return str(error)
        return None

    def _check_seal(self, step: int) -> None:
        """Raises a ValueError if a checkpoint's files are not as they were written."""
        if not self._seal(step).exists():
            return  # the run ended between the checkpoint and its seal; orbax checks it
        want, have = json.loads(self._seal(step).read_text()), _checksums(self._folder / str(step))
        changed = [name for name in want if have.get(name) != want[name]]
        if changed:
            raise ValueError(f"{len(changed)} of {len(want)} files changed, e.g. {changed[0]}")

    def _check_same_model(self, step: int, like: PyTree) -> None:
        saved = _shapes(self._manager.item_metadata(step))
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


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
