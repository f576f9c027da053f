"""Stopping on Ctrl-C, and on SIGTERM, which schedulers send before they take a machine.

Commands spend seconds importing, and a `KeyboardInterrupt` there prints a traceback through all of
JAX. Nothing has to be saved by then, so `end_commands_quietly` ends the process with one line. Code
that has something to save uses a `SignalWatch`. Exit codes are 130 and 143 at every moment. The
package imports this module first, so it imports nothing heavy.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import NoReturn

# The exit code that a shell reports for a process ended by a signal: 128 + its number.
EXIT_OFFSET = 128
EXIT_ORPHANED = 1
RETRY_SECONDS = 0.1
STDERR = 2


class Interrupted(BaseException):
    """The run was asked to stop. No `Exception`, so that no `except Exception` catches it.

    Attributes:
      exit_code: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, signum: int, step: int | None = None) -> None:
        """Records the signal, and the step that was saved because of it."""
        saved = "" if step is None else f"; step {step} is saved"
        super().__init__(f"stopped by {signal.Signals(signum).name}{saved}")
        self.exit_code = EXIT_OFFSET + signum


class SignalWatch:
    """While active, Ctrl-C and SIGTERM raise `Interrupted`; while `held`, they are only recorded.

    The second signal of a kind ends the process at once.

    Attributes:
      received: the recorded signal, 0 if there was none.
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
            self._previous[signum] = signal.signal(signum, self._record)
        self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._retry)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._swallowed
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Restores the signal handlers.

        Raises:
          Interrupted: in place of an exception that other code raised because of it.
        """
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        sys.unraisablehook = self._hook
        if self._raised and isinstance(error, Exception):
            raise Interrupted(self.received) from error

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Only records signals, for code that checks `received`; raises them at its end."""
        with self._holding(True):
            yield
        self._raise_recorded()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Raises at once again, inside of `held`."""
        with self._holding(False):
            self._raise_recorded()
            yield

    @contextlib.contextmanager
    def _holding(self, held: bool) -> Iterator[None]:
        before, self._held = self._held, held
        try:
            yield
        finally:
            self._held = before

    def _raise_recorded(self) -> None:
        if self.received:
            self._raised = True
            raise Interrupted(self.received)

    def _record(self, signum: int, frame: FrameType | None) -> None:
        if self.received:
            if signum == self.received:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return  # a launcher may send SIGTERM after a terminal's Ctrl-C
        self.received = signum
        if not self._held:
            self._raise_recorded()

    def _swallowed(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Raises `Interrupted` again a moment later if it was lost, for example in a finalizer."""
        if isinstance(unraisable.exc_value, Interrupted):
            signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
        else:
            self._hook(unraisable)

    def _retry(self, signum: int, frame: FrameType | None) -> None:
        if not self._held:
            self._raise_recorded()


def leave(message: str, code: int) -> NoReturn:
    """Ends the process at any point, with one line."""
    with contextlib.suppress(OSError, ValueError):  # nobody reads it, or its disk is full
        print(f"bvit: {message}", file=sys.stderr)
    end(code)


def end(code: int) -> NoReturn:
    """Ends the process at any point, and the processes that it started.

    JAX computes and compiles in background threads, which crash if the interpreter shuts down
    meanwhile: the process would end by SIGSEGV. So the interpreter is not shut down.
    """
    # Without this module, no process was started.
    if processes := sys.modules.get("multiprocessing"):
        for child in processes.active_children():
            child.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def end_with_parent() -> None:
    """Makes a worker process end once the one that started it is gone, even if it was killed."""
    import multiprocessing  # here, since few programs need it

    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(EXIT_ORPHANED)

    if parent:
        threading.Thread(target=watch, daemon=True).start()


def end_commands_quietly() -> None:
    """Makes Ctrl-C and SIGTERM end a command of bvit with one line; other programs are not changed.

    A background command that was started with Ctrl-C ignored goes on ignoring it.
    """
    if _is_command():
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) != signal.SIG_IGN:
                signal.signal(signum, _end)


def _is_command() -> bool:
    """Whether this process is python -m bvit.…, and not a program that imports bvit.

    Only true while Python looks for the module, which is when it imports the package.
    """
    if sys.argv[:1] != ["-m"]:
        return False
    module = sys.orig_argv[-len(sys.argv)].removeprefix("-m")  # may be written -mbvit.main
    return module.startswith("bvit.")


def _end(signum: int, frame: FrameType | None) -> None:
    # An exception could be caught by whatever is running.
    os.write(STDERR, f"bvit: stopped by {signal.Signals(signum).name}\n".encode())
    os._exit(EXIT_OFFSET + signum)
