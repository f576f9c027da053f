"""Ctrl-C for the commands of bvit, from their first moment on.

They spend seconds importing, and a `KeyboardInterrupt` there is a traceback through all of JAX.
Nothing has been done by then that would have to be saved, so the process says so and ends. What has
something to save watches for signals by itself (`bvit.interrupt`).
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

# What a shell reports for a process ended by the signal: 128 + its number.
EXIT_OFFSET = 128
STDERR = 2


def is_command() -> bool:
    """Whether this process is python -m bvit.…, and not a program that imports bvit.

    Only true while Python looks for the module, which is when it imports the package.
    """
    if sys.argv[:1] != ["-m"]:
        return False
    module = sys.orig_argv[-len(sys.argv)].removeprefix("-m")  # may be written -mbvit.main
    return module.startswith("bvit.")


def end(signum: int, frame: FrameType | None) -> None:
    """Ends the process with a line. An exception could be caught by whatever is under way."""
    os.write(STDERR, f"bvit: stopped by {signal.Signals(signum).name}\n".encode())
    os._exit(EXIT_OFFSET + signum)


def leave(message: str, code: int) -> NoReturn:
    """Ends the process in the middle of things, with a line.

    JAX goes on computing in the background, and crashes an interpreter that is being taken down
    meanwhile: so nothing is taken down.
    """
    print(f"bvit: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_commands_quietly() -> None:
    """Makes Ctrl-C end a command of bvit in one line; leaves other programs as they are.

    A command in the background that was started to ignore Ctrl-C goes on ignoring it.
    """
    if is_command() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, end)
