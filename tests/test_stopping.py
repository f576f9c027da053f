"""Ctrl-C in the first seconds of a command, and in programs that only import bvit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Stands in for the first heavy package that bvit loads: the signal comes in the middle of it.
SLOW_JAX = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('went on')"

# Runs the rest of its arguments with the handler that the first names.
START = """
import os, signal, sys
signal.signal(signal.SIGINT, getattr(signal, sys.argv[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""


def interrupted(tmp_path, *arguments, ignored=False):
    """Exit code, stdout and stderr; whether these tests run in the background changes nothing."""
    before = "SIG_IGN" if ignored else "SIG_DFL"
    (tmp_path / "jax.py").write_text(SLOW_JAX)
    done = subprocess.run(
        [sys.executable, "-c", START, before, sys.executable, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", ["main", "predict", "export", "report", "benchmark"])
def test_a_command_says_in_a_line_that_it_was_stopped(tmp_path, command):
    stopped = (128 + signal.SIGINT, "", "bvit: stopped by SIGINT\n")
    assert interrupted(tmp_path, "-m", f"bvit.{command}", "--flag=x") == stopped


def test_however_the_module_is_written(tmp_path):
    assert interrupted(tmp_path, "-mbvit.evaluation.focus_benchmark")[0] == 128 + signal.SIGINT


@pytest.mark.parametrize("arguments", [["-c", "import bvit", "-m", "bvit.main"], ["-m", "other"]])
def test_other_programs_keep_their_own_way(tmp_path, arguments):
    (tmp_path / "other.py").write_text("import bvit")
    code, _, err = interrupted(tmp_path, *arguments)
    assert code == -signal.SIGINT and "KeyboardInterrupt" in err


def test_a_command_in_the_background_goes_on(tmp_path):
    """Shells start what a script puts behind & with SIGINT ignored: it is meant for others."""
    code, out, _ = interrupted(tmp_path, "-m", "bvit.main", ignored=True)
    assert (code, out) == (1, "went on\n")  # and fails, since this jax is none
