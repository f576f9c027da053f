"""The flag --config of the commands that take an experiment, and its errors."""

import ast
import contextlib
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from bvit.arguments import EXIT_BAD_INPUT, fail

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment, e.g. configs/vit_mask.py; change a key of bvit/config.py with --config.key=value.",
)


def check(argv: Sequence[str]) -> None:
    """Ends the process unless the arguments are flags, and --config names a file."""
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}; settings are --config.key=value.", EXIT_BAD_INPUT)
    flag = flags.FLAGS["config"]
    if not flag.present:
        fail("--config must name an experiment, e.g. --config=configs/vit_mask.py", EXIT_BAD_INPUT)
    path = named().partition(":")[0]
    if not Path(path).is_file():
        fail(f"--config must be a file: there is no {path}; see configs/.", EXIT_BAD_INPUT)


def parse(argv: Sequence[str]) -> list[str]:
    """Parses flags; reports a misspelt config key in one line that suggests the right one."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        # An error in a config file comes with its traceback; its last line is the message.
        last = str(error).strip().splitlines()[-1].removeprefix("ValueError: ")
        fail(last, EXIT_BAD_INPUT)
    except (KeyError, AttributeError) as error:
        fail(
            f"there is no such setting: {_plain(error)}; see bvit/config.py, and the file that "
            "--config names.",
            EXIT_BAD_INPUT,
        )
    except ValueError as error:
        fail(f"the settings can't be read: {_plain(error)}", EXIT_BAD_INPUT)


def _plain(error: Exception) -> str:
    """An error's message in one line, without the quotes of a KeyError."""
    text = str(error.args[0])
    with contextlib.suppress(SyntaxError, ValueError):
        text = str(ast.literal_eval(text))
    return text.replace("\n", "; ")


def named() -> str:
    """What --config names: a file, and arguments behind a colon."""
    return config_flags.get_config_filename(flags.FLAGS["config"])
