"""A trace of a few training steps: what ran when, on the host and on the devices."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax


class StepTrace:
    """Traces the steps from a first to a last one; a resumed run traces those that are left.

    TensorBoard's profile plugin (`pip install xprof`) shows the trace, and so does Perfetto
    (ui.perfetto.dev opens `perfetto_trace.json.gz`). Writing it takes seconds, which count as time
    of the last step.
    """

    def __init__(self, steps: Sequence[int], directory: Path) -> None:
        """Sets what to trace; nothing is traced yet.

        Args:
          steps: first and last step, from 1; empty for no trace.
          directory: the trace is written to its `plugins/profile/`.
        """
        self._first, self._last = steps or (0, -1)
        self._directory = directory
        self._tracing = False

    def run(self, step: int, update: Callable[..., Any], *arguments: Any) -> Any:
        """Returns `update(*arguments)`, and traces it if this step is to be traced."""
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
        """Writes the trace, if one was started."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
