"""A trace of a few training steps: what ran when, on the host and on the devices."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax


def check_steps(steps: Sequence[int], total_steps: int) -> None:
    """Raises ValueError where `profile.steps` is neither empty nor a range within the training."""
    if not steps:
        return
    if len(steps) != 2 or not all(isinstance(step, int) for step in steps):
        raise ValueError(
            "profile.steps must be the first and the last step to trace, as 10,20, or () for no "
            f"profile: got {tuple(steps)!r}."
        )
    if not 1 <= steps[0] <= steps[1] <= total_steps:
        raise ValueError(
            f"profile.steps must lie within the {total_steps} steps of the training, the first not "
            f"after the last: got {steps[0]},{steps[1]}."
        )


class StepTrace:
    """Traces the steps from a first to a last one; a resumed run traces those that are left.

    The trace is for TensorBoard's profile plugin (`pip install xprof`), and for Perfetto
    (ui.perfetto.dev opens `perfetto_trace.json.gz`). Writing it takes seconds, which count as time
    of the last step.
    """

    def __init__(self, steps: Sequence[int], directory: Path) -> None:
        """Does nothing yet.

        Args:
          steps: first and last step, from 1; empty for no trace.
          directory: below it, in `plugins/profile/`, the trace is written.
        """
        self._first, self._last = steps or (0, -1)
        self._directory = directory
        self._tracing = False

    def run(self, step: int, update: Callable[..., Any], *arguments: Any) -> Any:
        """What `update(*arguments)` gives; it is traced if this step is."""
        if not self._first <= step <= self._last:
            return update(*arguments)
        if not self._tracing:
            jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = update(*arguments)
        if step == self._last:
            jax.block_until_ready(result)
            self.close()
        return result

    def close(self) -> None:
        """Writes the trace, if one is under way."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
