"""Disks that are full, read-only or no disks: one line, and what was saved before is intact."""

import errno
import os
import subprocess

import pytest
from jobs import Job, can_fail, messages
from test_main import arguments

from bvit.checkpoint import Checkpoints, _reason
from bvit.run import Run, write_json

SETTINGS = {
    "eval.policies": "keep",
    "eval.conditions": "sharp",
    "tokens.policy": "keep",
    "train.steps": 30,
    "checkpoint.every_steps": 3,
}
CONFIG = {"seed": 1}


@pytest.fixture
def disk(tmp_path):
    """Mounts a small file system; returns its folder."""
    mounted = []

    def disk(options):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("file systems can't be mounted here")
        mounted.append(folder)
        return folder

    yield disk
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("size", ["40k", pytest.param("400k", marks=pytest.mark.slow)])
def test_a_full_disk_is_one_line_and_its_checkpoints_serve_again(disk, tmp_path, size):
    folder = disk(f"size={size}")

    def job():
        run = arguments(folder / "run", **SETTINGS)
        return Job(run, tmp_path / "out", cache=tmp_path / "cache").wait()

    code, _, err = job()
    lines = messages(err)
    assert code in (1, 2) and "Traceback" not in err
    assert len(lines) == 1 and lines[0].startswith("bvit: ") and "No space left" in lines[0], err
    before = saved(folder / "run")
    subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
    code, out, err = job()  # as the line says: make room, then run the same command
    assert code == 0, err
    if before:
        assert f"from the checkpoint of step {before[0]}" in out


@pytest.mark.slow  # tests/soak.py makes many such faults
@pytest.mark.skipif(not can_fail(), reason="needs Linux and a C compiler")
def test_a_disk_that_fails_amid_training_is_one_line_and_its_checkpoints_serve_again(tmp_path):
    """Error after error, then a disk that is only slow; tests/soak.py does it at random."""
    workdir, cache = tmp_path / "run", tmp_path / "cache"
    faults = {"FOLDER": workdir, "COUNT": tmp_path / "count", "TO": 10**6, "DELAY": 10_000}
    for number, first in ((errno.EROFS, 2), (errno.EIO, 500), (errno.ENOSPC, 300), (0, 1)):
        before = saved(workdir)
        settings = faults | {"ERRNO": number, "FROM": first}
        job = Job(arguments(workdir, **SETTINGS), tmp_path / "out", cache=cache, faults=settings)
        code, out, err = job.wait()
        assert int((tmp_path / "count").read_text()) >= first, "there was no fault"
        if before:
            assert f"from the checkpoint of step {before[0]}" in out
        if number:
            (line,) = messages(err)
            assert code == (2 if first == 2 else 1) and line.startswith("bvit: "), err
            assert os.strerror(number) in line
    assert code == 0 and not messages(err), err
    assert before, "nothing was saved between the faults"


def saved(run):
    if not (run / "checkpoints").is_dir():
        return []
    checkpoints = Checkpoints(run / "checkpoints")
    steps = checkpoints.steps()
    checkpoints.close()
    return steps


@pytest.mark.parametrize("place", ["file", "below a file", "read-only", "/proc/bvit", "too long"])
def test_a_run_directory_that_can_not_be_is_one_line(disk, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    if place == "read-only":
        workdir = disk("ro") / "run"
    else:
        workdir = {
            "file": tmp_path / "file",
            "below a file": tmp_path / "file" / "run",
            "too long": tmp_path / ("x" * 300),
        }.get(place, place)
    code, _, err = Job(
        arguments(workdir, **SETTINGS), tmp_path / "out", cache=tmp_path / "cache"
    ).wait()
    assert code == 2
    (line,) = messages(err)
    assert line.startswith("bvit: ") and "choose another --workdir" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_every_error_of_a_disk_is_told_by_its_reason(tmp_path, monkeypatch, number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("bvit.run.write_json", fail)
    with pytest.raises(ValueError, match=os.strerror(number)):
        Run.begin(tmp_path / "run", CONFIG)


def test_what_could_not_be_written_leaves_the_file_before_and_no_other(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", [1])

    def full(path, text):
        with path.open("w") as file:
            file.write(text[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError):
        write_json(tmp_path / "a.json", [2])
    assert (tmp_path / "a.json").read_bytes() == b"[\n  1\n]\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_reason_is_taken_out_of_what_orbax_says():
    text = (
        'RESOURCE_EXHAUSTED: Error writing "a" to file 11: No space left on device [os_error_code='
    )
    assert _reason(ValueError(text + "'28'] [source]")) == "No space left on device"
    text = 'Error writing "a": Input/output error {"open":true}\'] [os_error_code=\'5\']'
    assert _reason(ValueError(text)) == "Input/output error"
    assert _reason(OSError(errno.EIO, "Input/output error")) == "Input/output error"
    assert len(_reason(ValueError("x\n" * 9999))) <= 300
    assert _reason(RuntimeError()) == "RuntimeError"
