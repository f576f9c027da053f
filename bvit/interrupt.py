"""Stopping in good order: Ctrl-C, and SIGTERM, which schedulers send before they take a machine."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType, TracebackType

from bvit.stopping import EXIT_OFFSET

RETRY_SECONDS = 0.1


class Interrupted(BaseException):
    """The run was asked to stop. No `Exception`, so that nobody takes it for a failure of theirs.

    Attributes:
      exit_code: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, signum: int, step: int | None = None) -> None:
        """Remembers which signal it was, and the step that was saved for it."""
        saved = "" if step is None else f"; step {step} is saved"
        super().__init__(f"stopped by {signal.Signals(signum).name}{saved}")
        self.exit_code = EXIT_OFFSET + signum


class SignalWatch:
    """While active, Ctrl-C and SIGTERM raise `Interrupted`; while `held` as well, they are noted.

    The second signal of a kind ends the process at once.

    Attributes:
      received: the signal that was noted, 0 if there was none.
    """

    def __init__(self) -> None:
        """Nothing has been received yet."""
        self.received = 0
        self._raised = False
        self._held = False
        self._previous: dict[int, object] = {}
        self._hook = sys.unraisablehook

    def __enter__(self) -> "SignalWatch":
        """Starts watching."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._note)
        self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._retry)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._swallowed
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Gives the signals back to whoever had them.

        Raises:
          Interrupted: in place of what code on the way, compiled or cleaning up, made of it.
        """
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        sys.unraisablehook = self._hook
        if self._raised and isinstance(error, Exception):
            raise Interrupted(self.received) from error

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Only notes signals, for code that asks for `received`; raises what is left at its end."""
        with self._holding(True):
            yield
        self._raise_noted()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Raises at once again, inside of `held`."""
        with self._holding(False):
            self._raise_noted()
            yield

    @contextlib.contextmanager
    def _holding(self, held: bool) -> Iterator[None]:
        before, self._held = self._held, held
        try:
            yield
        finally:
            self._held = before

    def _raise_noted(self) -> None:
        if self.received:
            self._raised = True
            raise Interrupted(self.received)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received:
            if signum == self.received:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return  # a launcher may send SIGTERM after a terminal's Ctrl-C
        self.received = signum
        if not self._held:
            self._raise_noted()

    def _swallowed(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Raises again, a moment later, what was raised where nothing can be, as in a finalizer."""
        if isinstance(unraisable.exc_value, Interrupted):
            signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
        else:
            self._hook(unraisable)

    def _retry(self, signum: int, frame: FrameType | None) -> None:
        if not self._held:
            self._raise_noted()
