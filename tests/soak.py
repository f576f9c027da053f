"""Signals and failing disks at random moments: commands end as documented and can be repeated.

python -m pytest -m slow tests/soak.py -s                    # takes an hour on two cores
SIGNALS=20 FAULTS=10 python -m pytest -m slow tests/soak.py -s       # instead of 200 and 100

A command is started, disturbed, and started again until it ends by itself. What it then leaves is
compared, bit by bit, with what it leaves undisturbed.
"""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jobs import ROOT, TIMEOUT, Job, can_fail, messages, xla_flags
from test_main import arguments
from trained import write_picture

SIGNALS = int(os.environ.get("SIGNALS", "200"))
LANES = 2
KINDS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
STEPS = 60
IMAGES = 12
SETTINGS = {
    "data.dir": "data",
    "train.condition": "sharp",
    "train.steps": STEPS,
    "train.batch_size": 8,
    "tokens.policy": "keep",
    "eval.batch_size": 8,
    "eval.conditions": "sharp",
    "eval.policies": "keep",
    "eval.every_steps": 20,
    "checkpoint.every_steps": 9,
}
TRAIN = ["main", *arguments("run", f"{ROOT}/configs/vit_mask.py:folder", **SETTINGS)]
# What is typed behind `python -m bvit.`, and how often of eight times. Paths are below the folder
# that the command is started in, so that two folders can be compared.
COMMANDS = {
    "main": (4, TRAIN),
    "main, a worker": (1, [*TRAIN, "--config.data.num_workers=1"]),
    "predict": (1, ["predict", "--run=trained", "--format=jsonl", "--overlays=seen", "data"]),
    "focus": (1, ["focus", "--format=jsonl", "--maps=maps", "data"]),
    "report": (1, ["report", "trained", "--to=report.html"]),
}


class Command:
    """A command under way, in a session of its own."""

    def __init__(self, name, folder, cache):
        self._out, self._err = folder / "out.txt", folder / "err.txt"
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "XLA_FLAGS": xla_flags(1),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        module, *arguments = COMMANDS[name][1]
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"bvit.{module}", *arguments],
                cwd=folder,
                env=environment,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def wait(self, seconds=TIMEOUT):
        """The exit code; None if it is still running after so many seconds."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def send(self, signum):
        self._process.send_signal(signum)

    def watches(self):
        """Whether bvit decides what a signal does: not before its first line, nor at its end."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    def done(self):
        """Whether it has written its last line: a signal may then come too late."""
        out = self._out.read_text()
        report = self._out.with_name("report.html")
        return "\ncurves " in out or out.count('"file"') == IMAGES or report.exists()

    def printed(self):
        return self._out.read_text(), self._err.read_text()

    def left(self):
        """The processes of its session that are still there, after some time to end."""
        for _ in range(300):
            found = [line for line in _processes() if line.split()[:1] == [str(self._process.pid)]]
            if not found:
                break
            time.sleep(0.1)
        return found


def _processes():
    command = ["ps", "-e", "-o", "pgid=,stat=,args="]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if not line.split()[1].startswith("Z")]


def results(name, folder):
    """What a command leaves, without times and speeds."""
    if name.startswith("main"):
        return state(folder / "run"), [losses(folder / "run"), evaluations(folder / "run")]
    kept = folder / {"predict": "seen", "focus": "maps", "report": "report.html"}[name]
    # What a kill may leave besides is a hidden temporary file.
    files = [path for path in kept.glob("[!.]*")] if kept.is_dir() else [kept]
    shown = (folder / "out.txt").read_text()
    return {path.name: np.frombuffer(path.read_bytes(), np.uint8) for path in files}, shown


def state(run):
    with ocp.CheckpointManager(
        (run / "checkpoints").absolute(),
        item_handlers={item: ocp.PyTreeCheckpointHandler() for item in ("model", "training")},
    ) as manager:
        assert manager.latest_step() == STEPS
        return jax.tree.map(np.asarray, dict(manager.restore(STEPS)))


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def evaluations(run):
    return (run / "evaluations.jsonl").read_text()


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])
    assert ours[1] == theirs[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with images, a run that was trained on them undisturbed, and compiled programs."""
    # Shells start what is put behind & with SIGINT ignored, and so would be the commands.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    top = tmp_path_factory.mktemp("home")
    for i in range(IMAGES):
        write_picture(top / "data" / ("train", "val")[i % 2] / "abc"[i // 4] / f"{i}.png", seed=i)
    finish("main", top)
    shutil.copytree(top / "main" / "run", top / "trained")
    return top


def finish(name, top):
    """Runs a command to its end; returns the seconds that it took."""
    command = Command(name, prepare(name, top, top / name), top / "cache")
    start = time.monotonic()
    assert command.wait() == 0, command.printed()
    return time.monotonic() - start


def prepare(name, top, folder):
    """A folder for a command to start in."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for given in ("data", "trained"):
        (folder / given).symlink_to(top / given)  # the second may come later
    return folder


@pytest.mark.slow
def test_stopped_at_random_moments_commands_end_as_documented(home, tmp_path):
    """From exec to exit, in two lanes side by side."""
    for name in COMMANDS:
        finish(name, home)  # compiles
    seconds = {name: finish(name, home) for name in COMMANDS}
    print({name: f"{time:.0f} s" for name, time in seconds.items()}, flush=True)

    def run(lane):
        sent, failures, unfinished = Counter(), [], set()
        draw = random.Random(lane)
        expected = {name: results(name, home / name) for name in COMMANDS}
        while sum(n for key, n in sent.items() if key[1] != "ended") < SIGNALS // LANES:
            (name,) = draw.choices(list(COMMANDS), [weight for weight, _ in COMMANDS.values()])
            signum, delay = draw.choice(KINDS), draw.uniform(0, seconds[name])
            folder = tmp_path / str(lane) / name
            if name not in unfinished:
                prepare(name, home, folder)
            command = Command(name, folder, home / "cache")
            code = command.wait(delay)
            line = f"{lane}: {name}, {signum.name} after {delay:.2f} s"
            try:
                if code is None:
                    unfinished.add(name)
                    whose = "bvit's" if command.watches() else "Python's"
                    sent[name, signum.name, whose] += 1
                    code = check_stopped(command, signum, whose)
                    line += f" ({whose}): {code}"
                else:
                    line += ": had ended"
                    assert code == 0, command.printed()
                if code == 0:
                    unfinished.discard(name)
                    sent[name, "ended"] += 1
                    same(results(name, folder), expected[name])
            except Exception as error:
                failures.append(line)
                line += f" FAILED: {error}"
                shutil.copytree(folder, tmp_path / f"failure{lane}.{len(failures)}", symlinks=True)
            print(line, flush=True)
        return sent, failures

    with ThreadPoolExecutor(LANES) as lanes:
        found = list(lanes.map(run, range(LANES)))
    for key, times in sorted(sum((sent for sent, _ in found), Counter()).items()):
        print(*key, times, sep=" | ")
    assert not [line for _, failures in found for line in failures]


def check_stopped(command, signum, whose):
    """Returns the exit code, after checking it, what was printed, and what is still running."""
    done = command.done()
    command.send(signum)
    code = command.wait()
    out, err = command.printed()
    if signum == signal.SIGKILL:
        assert code == -signum
        assert not messages(err)
    elif whose == "bvit's" and not done:
        assert code == 128 + signum, (code, out[-200:], messages(err))
        # Orbax warns of a checkpoint that an earlier kill left half deleted.
        (line,) = (line for line in messages(err) if "_CHECKPOINT_METADATA" not in line)
        assert line.partition(";")[0] == f"bvit: stopped by {signum.name}"
    else:  # before bvit's first line and after its last one, Python decides
        assert code in (128 + signum, -signum, 0), (code, messages(err))
    assert not (left := command.left()), left
    return code


FAULTS = int(os.environ.get("FAULTS", "100"))
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, 0)  # 0: slow


@pytest.mark.slow
@pytest.mark.skipif(not can_fail(), reason="needs Linux and a C compiler")
def test_a_disk_that_fails_at_random_writes_costs_a_line_and_no_checkpoint(home, tmp_path):
    draw, met, failures = random.Random(0), Counter(), []
    expected, folder = results("main", home / "main"), tmp_path / "main"
    # Of a whole run; those that go on make fewer changes, so that some end before the fault.
    code, changes = disturb(home, prepare("main", home, folder), tmp_path)[0], count(tmp_path)
    assert code == 0
    prepare("main", home, folder)
    while sum(met.values()) < FAULTS:
        error, first = draw.choice(ERRORS), draw.randint(1, changes)
        last = first if draw.random() < 0.3 else changes * 10  # passes, or stays
        faults = {"ERRNO": error, "FROM": first, "TO": last, "DELAY": 20_000}
        saved = checkpoints(folder / "run")
        code, out, err = disturb(home, folder, tmp_path, **faults)
        happened = count(tmp_path) >= first
        line = f"{errno.errorcode.get(error, 'slow')} from {first} to {last}: code {code}"
        try:
            if saved and code != 2:  # it came so far
                step = re.search(r"from the checkpoint of step (\d+)|This run is finished", out)
                assert step and int(step[1] or STEPS) >= saved[-1], out
            if code:
                (message,) = messages(err)
                assert code in (1, 2) and message.startswith("bvit: "), messages(err)
                assert os.strerror(error) in message, message
                assert happened and error
            else:
                assert not messages(err), messages(err)
                same(results("main", folder), expected)
                prepare("main", home, folder)
        except Exception as failure:
            failures.append(line)
            line += f" FAILED: {failure}"
            shutil.copytree(folder, tmp_path / f"failure.{len(failures)}", symlinks=True)
            if not code:
                prepare("main", home, folder)
        met[errno.errorcode.get(error, "slow"), "ended" if code else "went on"] += happened
        print(line, flush=True)
    for key, times in sorted(met.items()):
        print(*key, times, sep=" | ")
    assert not failures


def disturb(top, folder, scratch, **faults):
    """Trains in a folder on a disk with faults; returns (exit code, stdout, stderr)."""
    (scratch / "count").unlink(missing_ok=True)
    faults = {"FOLDER": folder / "run", "COUNT": scratch / "count", **faults}
    settings = SETTINGS | {"data.dir": top / "data"}
    flags = arguments(folder / "run", f"{ROOT}/configs/vit_mask.py:folder", **settings)
    return Job(flags, scratch / "out", cache=top / "cache", faults=faults).wait()


def count(scratch):
    """The changes to the disk of the last job."""
    path = scratch / "count"
    return int(path.read_text()) if path.exists() else 0


def checkpoints(run):
    """The steps that are saved whole, each with its seal."""
    return sorted(int(path.stem) for path in (run / "checkpoints").glob("*.seal"))
