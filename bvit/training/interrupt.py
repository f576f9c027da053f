"""Stopping in good order: a signal ends the training after the step under way."""

import signal
from types import FrameType

# What a shell reports for a process ended by the signal: 128 + its number.
EXIT_OFFSET = 128


class Interrupted(Exception):
    """The run was asked to stop, and its state is saved.

    Attributes:
      exit_code: 130 after Ctrl-C, 143 after SIGTERM (what schedulers send before preempting).
    """

    def __init__(self, signum: int, step: int) -> None:
        """Remembers which signal it was, and the step that was saved."""
        super().__init__(f"stopped by {signal.Signals(signum).name}; step {step} is saved")
        self.exit_code = EXIT_OFFSET + signum


class SignalWatch:
    """While active, Ctrl-C and SIGTERM are noted, and end the process only the second time."""

    def __init__(self) -> None:
        """Nothing has been received yet."""
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "SignalWatch":
        """Starts watching."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        """Gives the signals back to whoever had them."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        signal.signal(signum, signal.SIG_DFL)
