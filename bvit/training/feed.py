"""The batches of a training; worker processes that die are replaced."""

from collections.abc import Callable, Iterator

import numpy as np
from absl import logging

from bvit.data import Batches

# A worker that dies this many times over the same batch will die again.
MAX_DEATHS = 3


class DataWorkerError(Exception):
    """The processes that make batches keep dying."""


class Feed(Iterator[dict[str, np.ndarray]]):
    """Batches from a given step on; a batch depends on its step alone, so workers can be replaced.

    Attributes:
      skipped: unreadable images that were skipped so far.
    """

    def __init__(self, open_at: Callable[[int], Batches], start_step: int) -> None:
        """Opens the data.

        Args:
          open_at: step → its batch and those after it.
          start_step: the first one wanted, from 0.
        """
        self._open_at, self._step = open_at, start_step
        self._batches = open_at(start_step)
        self._skipped_before = 0

    @property
    def skipped(self) -> int:  # noqa: D102 (documented in the class)
        return self._skipped_before + self._batches.skipped

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch.

        Raises:
          DataWorkerError: worker processes died `MAX_DEATHS` times over it.
        """
        for death in range(1, MAX_DEATHS + 1):
            try:
                batch = next(self._batches)
                self._step += 1
                return batch
            except RuntimeError as error:  # grain's, when a worker ends before it should
                reason = error
                logging.warning("A data worker died at step %d: %s", self._step + 1, error)
                self._skipped_before = self.skipped
                self._batches.close()
                if death < MAX_DEATHS:
                    self._batches = self._open_at(self._step)
        raise DataWorkerError(
            f"data workers died {MAX_DEATHS} times over the batch of step {self._step + 1}: "
            f"{reason} Memory may be short: lower data.num_workers, or use threads, with 0."
        )

    def close(self) -> None:
        """Stops the threads or processes that make batches."""
        self._batches.close()
