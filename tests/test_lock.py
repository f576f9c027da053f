"""Who works in a run directory: on one machine, on two, after a crash, after a long pause."""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from bvit import lock
from bvit.lock import RunLock

# Locks a file, and ends without letting go of it.
CRASH = """
import os, signal, sys
from pathlib import Path
from bvit.lock import RunLock
RunLock(Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".lock"


@pytest.fixture
def two_machines(monkeypatch):
    """Says on which machine the test is; neither hears of the other's locks. Time is short."""
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "STALE", 0.5)
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)

    def on(machine):
        monkeypatch.setattr(lock, "_machine", lambda: machine)
        monkeypatch.setattr(lock.socket, "gethostname", lambda: f"host-{machine}")

    on("a")
    return on


def crash(path):
    """Leaves the file as a run that was killed does, on this machine."""
    held = RunLock(path)
    held._released.set()  # its heart stops
    held._beats.join()
    record = path.read_text()
    held.release()
    path.write_text(record)


def test_it_is_held_until_it_is_released(path):
    held = RunLock(path)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"process {os.getpid()} on .* is working in"):
            RunLock(path)
    held.release()
    RunLock(path).release()
    assert path.read_text() == ""


def test_a_lock_does_not_outlive_a_killed_process(path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("nothing to wait for"))
    killed = subprocess.run([sys.executable, "-c", CRASH, path])
    assert killed.returncode < 0 and json.loads(path.read_text())["process"]
    RunLock(path).release()


def test_a_live_run_on_another_machine_is_noticed_by_its_heartbeat(path, two_machines):
    held = RunLock(path)
    two_machines("b")
    with pytest.raises(ValueError, match="on host-a"):
        RunLock(path)
    held.release()
    RunLock(path).release()


@pytest.fixture
def waits(monkeypatch):
    """The seconds of each wait."""
    found, sleep = [], time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(found.append(seconds) or seconds))
    return found


def test_a_run_that_died_on_another_machine_is_waited_for(path, two_machines, waits):
    crash(path)
    two_machines("b")
    RunLock(path).release()
    assert waits
    crash(path)
    long_ago = time.time() - 3600
    os.utime(path, (long_ago, long_ago))
    two_machines("c")
    waits.clear()
    RunLock(path).release()
    assert not waits


def test_a_run_that_ends_while_another_machine_waits_lets_it_in(path, two_machines):
    crash(path)
    two_machines("b")
    threading.Timer(0.1, lambda: path.write_text("")).start()
    RunLock(path).release()


def test_without_any_locks_a_machine_still_notices_its_own_runs(path, two_machines, monkeypatch):
    def no_locks(*_):
        raise OSError("No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    held = RunLock(path)
    with pytest.raises(ValueError, match="on host-a"):
        RunLock(path)
    held.release()


@pytest.mark.parametrize("record", ["", "process 3 on node7", "[]", "{", "{}", '{"process": 3}'])
def test_a_file_of_an_older_bvit_or_a_damaged_one_locks_nobody_out(path, two_machines, record):
    path.write_text(record)
    RunLock(path).release()


def test_a_copy_of_a_run_directory_is_free(path, two_machines, tmp_path, waits):
    """On another machine after a wait: there, nothing sets it apart from the original."""
    held = RunLock(path)
    copy = tmp_path / "copy" / ".lock"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    RunLock(copy).release()
    assert not waits
    copy.write_bytes(path.read_bytes())
    two_machines("b")
    RunLock(copy).release()
    assert waits
    held.release()


def test_a_run_that_was_taken_over_ends(path, two_machines, monkeypatch):
    ended = threading.Event()

    def leave(message, code):
        assert "process 0 on host-b" in message and code == 1
        ended.set()

    monkeypatch.setattr(lock, "leave", leave)
    held = RunLock(path)
    taken = json.dumps(held._record | {"process": 0, "host": "host-b", "token": "other"})
    path.write_text(taken)
    assert ended.wait(30)
    held.release()
    assert path.read_text() == taken  # not its own to clear
