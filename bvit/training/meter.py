"""Reading the metrics of each step while the next one runs."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jaxtyping import Array

from bvit import distributed
from bvit.training.feed import Feed
from bvit.training.metrics import MetricsWriter


class NonFiniteLossError(Exception):
    """The loss or a gradient was NaN or infinite; the last checkpoint is from before it."""


class Meter:
    """Reads the metrics of each step: progress bar, log lines, and the check that all is finite."""

    def __init__(
        self,
        writer: MetricsWriter,
        schedule: optax.Schedule,
        *,
        start_step: int,
        total_steps: int,
        batch_size: int,
        log_every: int,
        skip_nonfinite: int,
    ) -> None:
        """Starts the bar and the clock.

        Args:
          writer: where the log lines go.
          schedule: step → learning rate, to log.
          start_step: updates already done.
          total_steps: updates of the whole run.
          batch_size: images of an update.
          log_every: steps between log lines.
          skip_nonfinite: how many non-finite updates in a row are allowed.
        """
        self._writer = writer
        # All at once: a rate computed later would queue behind the step under way, and the log wait
        # for that step. Schedules are evaluated at the count of updates before a step.
        self._rates = jax.device_get(jax.jit(jax.vmap(schedule))(jnp.arange(total_steps)))
        self._batch_size, self._log_every = batch_size, log_every
        self._skip_nonfinite, self._nonfinite_in_a_row = skip_nonfinite, 0
        self._skipped, self._speed = 0, {}
        self._bar = distributed.progress_bar("training", "step", total_steps, initial=start_step)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Excludes the time since the last step from images/s."""
        self._since, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def wait_for(self, feed: Feed) -> dict[str, np.ndarray]:
        """The next batch; its time counts as waiting for data."""
        began = time.perf_counter()
        batch = next(feed)
        self._waited += time.perf_counter() - began
        if feed.skipped > self._skipped:
            self._skipped = feed.skipped
            logging.warning("%d unreadable images skipped so far.", self._skipped)
        return batch

    def read(self, step: int, metrics: dict[str, Array]) -> int:
        """Shows the metrics of a step in the progress bar, and logs them every so many steps.

        Returns:
          The signal that any process had received by that step, 0 for none.

        Raises:
          NonFiniteLossError: more non-finite steps in a row than `train.skip_nonfinite` allows.
        """
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        signal = int(values.pop("signal"))
        self._check_finite(step, values)
        self._steps += 1
        self._bar.update()
        if step % self._log_every == 0:
            seconds = time.perf_counter() - self._since
            images_per_s = self._steps * self._batch_size / seconds
            values["learning_rate"] = float(self._rates[step - 1])
            values["images_per_s"] = images_per_s
            values["data_wait"] = self._waited / seconds
            del values["finite"]
            self._writer.scalars(step, values)
            self._speed = {"images_per_s": f"{images_per_s:.0f}"}
            self.restart_clock()
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", **self._speed, refresh=False)
        return signal

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        if values["finite"]:
            self._nonfinite_in_a_row = 0
            return
        self._nonfinite_in_a_row += 1
        if self._nonfinite_in_a_row > self._skip_nonfinite:
            raise NonFiniteLossError(
                f"loss {values['loss']} and gradient norm {values['grad_norm']} at step {step} are "
                "not both finite. The last checkpoint is from before it. Run the same command with "
                f"train.skip_nonfinite={2 * self._skip_nonfinite + 1}, which skips such updates, "
                "to go on; or train in another --workdir with a lower optimizer.learning_rate."
            )
        if distributed.is_main():
            logging.warning("Skipped step %d: loss %s is not finite.", step, values["loss"])

    def close(self) -> None:
        """Ends the progress bar."""
        self._bar.close()
