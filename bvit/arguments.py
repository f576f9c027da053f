"""The flags of the small commands: short help, and errors that name the flag that was meant."""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import flags

EXIT_BAD_INPUT = 2


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


def fail(message: str, code: int) -> NoReturn:
    """Ends the process with a message, as all commands of bvit do."""
    print(f"bvit: {message}", file=sys.stderr)
    sys.exit(code)
