"""Signals during a run, in the first seconds of a command, and in programs that import bvit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bvit.interrupt import Interrupted, SignalWatch

ROOT = Path(__file__).parents[1]
# Stands in for the first heavy package that bvit loads: the signal comes in the middle of it.
SLOW_JAX = "import os, signal; os.kill(os.getpid(), signal.{}); print('went on')"

# Runs the rest of its arguments with the handler that the first names.
START = """
import os, signal, sys
signal.signal(signal.SIGINT, getattr(signal, sys.argv[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""


def send(signum):
    os.kill(os.getpid(), signum)
    time.sleep(0)  # Python runs handlers between bytecodes


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_interrupts_at_once(signum, code):
    with pytest.raises(Interrupted) as stop, SignalWatch():
        send(signum)
    assert stop.value.exit_code == code
    assert not isinstance(stop.value, Exception)  # nobody's `except Exception` takes it


def test_while_held_it_is_recorded_and_raised_at_the_end():
    recorded = []
    with pytest.raises(Interrupted), SignalWatch() as watch, watch.held():
        send(signal.SIGTERM)
        recorded.append(watch.received)
    assert recorded == [signal.SIGTERM]


def test_released_within_held_raises_at_once_also_what_came_before():
    with pytest.raises(Interrupted), SignalWatch() as watch, watch.held(), watch.released():
        send(signal.SIGINT)
        pytest.fail("not reached")
    with pytest.raises(Interrupted), SignalWatch() as watch, watch.held():
        send(signal.SIGINT)
        with watch.released():
            pytest.fail("not reached")


def test_an_error_that_it_causes_is_still_an_interruption():
    with pytest.raises(Interrupted) as stop, SignalWatch():
        try:
            send(signal.SIGTERM)
        finally:
            raise RuntimeError("half of a thing can't be closed")
    assert stop.value.exit_code == 143


def test_an_error_after_a_signal_that_was_only_recorded_is_that_error():
    with pytest.raises(OSError), SignalWatch() as watch, watch.held():
        send(signal.SIGTERM)
        raise OSError("no space left")


def test_the_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with SignalWatch():
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


class Finalized:
    def __del__(self):
        send(signal.SIGINT)


def test_one_that_was_lost_in_a_finalizer_is_raised_again():
    with pytest.raises(Interrupted), SignalWatch():
        Finalized()
        time.sleep(5)
        pytest.fail("swallowed")


def interrupted(tmp_path, *arguments, ignored=False, by="SIGINT"):
    """Exit code, stdout and stderr; whether these tests run in the background changes nothing."""
    before = "SIG_IGN" if ignored else "SIG_DFL"
    (tmp_path / "jax.py").write_text(SLOW_JAX.format(by))
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
    by, code = ("SIGTERM", 143) if command == "main" else ("SIGINT", 130)
    stopped = (code, "", f"bvit: stopped by {by}\n")
    assert interrupted(tmp_path, "-m", f"bvit.{command}", "--flag=x", by=by) == stopped


# A process that ends by itself or is killed, with a thread that stands for the compiler's, and with
# a worker.
ENDING = """
import multiprocessing, os, signal, sys, threading, time
from bvit.interrupt import end_with_parent, leave
def work():
    end_with_parent()
    time.sleep(60)
worker = multiprocessing.get_context("fork").Process(target=work)
worker.start()
print(worker.pid, flush=True)
threading.Thread(target=time.sleep, args=(60,)).start()
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
leave("stopped", 143)
"""


@pytest.mark.parametrize("how, code, err", [("left", 143, "bvit: stopped\n"), ("killed", -9, "")])
def test_an_end_waits_for_no_thread_and_leaves_no_process(how, code, err):
    done = subprocess.run(
        [sys.executable, "-c", ENDING, how],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,  # waits until the worker has closed its copies
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (code, err)
    assert done.stdout.strip().isdigit()


def test_however_the_module_is_written(tmp_path):
    assert interrupted(tmp_path, "-mbvit.studies.score_maps")[0] == 128 + signal.SIGINT


@pytest.mark.parametrize("arguments", [["-c", "import bvit", "-m", "bvit.main"], ["-m", "other"]])
def test_other_programs_are_not_changed(tmp_path, arguments):
    (tmp_path / "other.py").write_text("import bvit")
    code, _, err = interrupted(tmp_path, *arguments)
    assert code == -signal.SIGINT and "KeyboardInterrupt" in err


def test_a_command_in_the_background_goes_on(tmp_path):
    """Shells start what a script puts behind & with SIGINT ignored: it is meant for others."""
    code, out, _ = interrupted(tmp_path, "-m", "bvit.main", ignored=True)
    assert (code, out) == (1, "went on\n")  # and fails, since this jax is none
