"""The flags of the small commands: short help, and errors that name the flag that was meant."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from absl import flags

from bvit.interrupt import Interrupted, SignalWatch, leave

EXIT_UNREADABLE = 1
EXIT_BAD_INPUT = 2
# Files that a list of failures names.
MOST_SHOWN = 20


class Parser(argparse.ArgumentParser):
    """Parses a command's flags, and reports errors in one line, with exit code 2."""

    def __init__(self, command: str, description: str) -> None:
        """Starts without flags.

        Args:
          command: what is typed before the flags.
          description: shown by --help as it is.
        """
        super().__init__(
            prog=command,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Reads what was typed behind the command."""
        known = re.findall(r"--[\w-]+", self.format_usage()) + ["--help"]
        for argument in arguments:
            name = argument.partition("=")[0]
            if name.startswith("--") and name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
                self.error(f"no flag is called {name}; {meant}")
        return super().parse_args(arguments)

    def error(self, message: str) -> NoReturn:
        """Reports what is wrong, and ends the process."""
        fail(f"{message} (--help shows all flags)", EXIT_BAD_INPUT)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Reads absl's flags, for `app.run`, and reports errors in one line, with exit code 2."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        fail(f"{error} (--help shows all flags)", EXIT_BAD_INPUT)


def run_over_files(work: Callable[[], tuple[Mapping[str, str], int]], *, undone: str) -> None:
    """Runs a command over files; errors and signals end the process with one message.

    Args:
      work: does it. Returns name → reason of the files that failed, and how many did not.
      undone: what failed files could not be, as "read".
    """
    try:
        with SignalWatch():
            failures, done = work()
    except Interrupted as stop:
        leave(str(stop), stop.exit_code)
    except BrokenPipeError:  # whoever reads the results has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    except (ValueError, OSError) as error:
        fail(str(error), EXIT_BAD_INPUT)
    if failures:
        others = "; the others are done" if done else ""
        lines = [f"{len(failures)} could not be {undone}{others}:"]
        lines += [f"  {name}: {reason}" for name, reason in list(failures.items())[:MOST_SHOWN]]
        if len(failures) > MOST_SHOWN:
            lines.append(f"  and {len(failures) - MOST_SHOWN} more")
        fail("\n".join(lines), EXIT_UNREADABLE)


def fail(message: str, code: int) -> NoReturn:
    """Ends the process with a message, as all commands of bvit do."""
    print(f"bvit: {message}", file=sys.stderr)
    sys.exit(code)
