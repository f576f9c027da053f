"""The main job from the outside: what a person types, sees, and finds in the run directory."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from jobs import ROOT, TIMEOUT, Job, xla_flags
from PIL import Image

from bvit.report.__main__ import main as compare_runs
from bvit.run import Run

STEPS = 8
TINY = {
    "data.image_size": 32,
    "model.patch_size": 8,
    "model.width": 32,
    "model.depth": 1,
    "model.num_heads": 2,
    "train.steps": STEPS,
    "train.batch_size": 16,
    "train.ema_decay": 0.9,
    "optimizer.warmup": 0.25,
    "eval.policies": "keep,zero,merge:7",
    "eval.every_steps": 0,
    "tokens.policy": "keep,merge:7",
    "checkpoint.every_steps": 3,
    "log.every_steps": 1,
}


def arguments(workdir, config="configs/vit_mask.py", **settings):
    flags = [f"--config.{k}={v}" for k, v in (TINY | settings).items() if v is not None]
    return [f"--config={config}", f"--workdir={workdir}", *flags]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """The environment of a job that starts from nothing; all share what they compile."""
    return os.environ | {
        "XLA_FLAGS": xla_flags(1),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "BVIT_PYTHON": sys.executable,
    }


@pytest.fixture(scope="session")
def start(environment, tmp_path_factory):
    """Starts a main job."""
    output = tmp_path_factory.mktemp("output")

    def start(workdir, *, devices=1, **settings):
        cache = environment["JAX_COMPILATION_CACHE_DIR"]
        return Job(arguments(workdir, **settings), output, devices=devices, cache=cache)

    return start


@pytest.fixture(scope="session")
def run(start):
    """Runs a main job to its end; returns (exit code, stdout, stderr)."""
    return lambda *args, **settings: start(*args, **settings).wait()


@pytest.fixture(scope="session")
def finished(environment, tmp_path_factory):
    """A run directory of a whole, undisturbed run, started as people do; and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    done = subprocess.run(
        [sys.executable, "-m", "bvit.main", *arguments(workdir, **{"profile.steps": "2,3"})],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout, done.stderr


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def accuracies(workdir):
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    return [(row["condition"], row["policy"], row["top1"], row["top5"]) for row in rows]


def test_a_run_prints_what_it_is_and_where_everything_lies(finished):
    workdir, out, err = finished
    for word in ("devices", "parameters", "GFLOPs", "tokens", " training,", "nearest neighbour"):
        assert word in out
    assert "| sharp " in out and "| region " in out
    assert f"{STEPS}/{STEPS}" in err  # the progress bar
    for name in ("config.json", "metrics.jsonl", "results.json", "figures/accuracy.png"):
        assert (workdir / name).stat().st_size > 0
    assert (workdir / "checkpoints" / str(STEPS)).is_dir()
    assert list(workdir.glob("events*"))
    assert list(workdir.glob("plugins/profile/*/*.xplane.pb"))
    assert not list(workdir.rglob("*.partial"))


def test_results_hold_a_row_for_each_condition_and_policy(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    rows = {(row["condition"], row["policy"]): row for row in results["rows"]}
    assert len(rows) == len(results["rows"]) == 9
    for row in rows.values():
        assert row["n"] == rows["sharp", "keep"]["n"] > 100
        assert 0 <= row["ci95"][0] <= row["top1"] <= row["ci95"][1] <= 1
        assert row["top1"] <= row["top5"] <= 1
        assert row["images_per_s"] > 0
    assert rows["sharp", "keep"]["tokens"] == 16
    assert rows["blur", "merge:7"]["tokens"] == 7
    assert rows["sharp", "merge:7"]["gflops"] < 0.6 * rows["sharp", "keep"]["gflops"]
    assert results["step"] == STEPS
    assert results["config"]["train"]["steps"] == STEPS


def test_a_run_keeps_its_answer_to_each_image(finished):
    rows = json.loads((finished[0] / "results.json").read_text())["rows"]
    kept = Run(finished[0]).answers
    np.testing.assert_array_equal(kept.index, np.arange(rows[0]["n"]))
    assert list(kept.ranks) == [(row["condition"], row["policy"]) for row in rows]
    for row, rank in zip(rows, kept.ranks.values(), strict=True):
        assert (np.mean(rank == 0), np.mean(rank < 5)) == (row["top1"], row["top5"])


def test_a_run_can_be_evaluated_again_and_stands_for_itself(finished, run, tmp_path, capsys):
    workdir, again = finished[0], tmp_path / "again"
    settings = {"init_from": workdir, "init_head": True, "train.steps": 0, "optimizer.warmup": 0}
    code, _, err = run(again, **settings)
    assert code == 0, err
    before, after = Run(workdir).answers, Run(again).answers
    for cell, rank in before.ranks.items():
        np.testing.assert_array_equal(after.ranks[cell], rank)
    (ancestor,) = json.loads((again / "results.json").read_text())["ancestors"]
    assert ancestor == json.loads((workdir / "config.json").read_text())
    for one, other in ((workdir, again), (again, workdir)):
        compare_runs([str(one), "--matrix", "--against", str(other)])
        assert re.search(r"\| keep +\| [\d.]+ +\| \+0.00 ", capsys.readouterr().out)


def test_a_finished_run_says_so(finished, run):
    workdir, out, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    code, again, _ = run(workdir)
    assert code == 0
    assert "finished" in again
    assert out[out.index("| condition") :] == again[again.index("| condition") :]
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.fixture(scope="session")
def killed(start, tmp_path_factory):
    """The run directory of a run that was killed once it had saved something."""
    workdir = tmp_path_factory.mktemp("runs") / "killed"
    job = start(workdir)
    job.wait_until(lambda: list(workdir.glob("checkpoints/[36]")))
    job.kill()
    job.wait()
    return workdir


def test_a_killed_run_goes_on_to_the_same_numbers(finished, killed, run, tmp_path):
    workdir = shutil.copytree(killed, tmp_path / "killed")
    code, _, err = run(workdir)
    assert code == 0, err
    assert losses(workdir) == losses(finished[0])
    assert accuracies(workdir) == accuracies(finished[0])


@pytest.mark.slow
def test_a_killed_run_goes_on_with_eight_devices(finished, killed, run, tmp_path):
    workdir = shutil.copytree(killed, tmp_path / "eight")
    code, out, err = run(workdir, devices=8, **{"mesh.fsdp": 2, "mesh.tensor": 2})
    assert code == 0, err
    assert "over fsdp" in out
    one, eight = losses(finished[0]), losses(workdir)
    assert one.keys() == eight.keys()
    np.testing.assert_allclose(list(eight.values()), list(one.values()), rtol=1e-5)


@pytest.mark.slow  # tests/test_processes.py compares two processes with one
def test_two_processes_train_as_one_and_one_goes_on(finished, environment, run, tmp_path):
    workdir = tmp_path / "two"
    settings = {"eval.conditions": "sharp", "eval.policies": "keep"}
    command = ["bash", "launch/local.sh", "2", "4", "--"]
    launched = subprocess.Popen(
        [*command, *arguments(workdir, **settings, **{"mesh.fsdp": 2})],
        cwd=ROOT,
        env=environment | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(workdir.glob("checkpoints/3.seal")):
        assert launched.poll() is None, launched.communicate()
        time.sleep(0.02)
    launched.terminate()
    out, err = launched.communicate(timeout=TIMEOUT)
    assert "2 processes" in out and out.count("devices  ") == 1  # only the first one talks
    if launched.returncode:  # the signal came before the end, as it should
        assert launched.returncode == 128 + signal.SIGTERM, err
        assert err.count("is saved; run the same command to go on") == 1
    code, out, err = run(workdir, devices=8, **settings)
    assert code == 0, err
    assert "Going on" in out or "finished" in out
    one, two = losses(finished[0]), losses(workdir)
    assert one.keys() == two.keys()
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)


def test_processes_fail_as_one(environment, tmp_path):
    done = subprocess.run(
        [
            "bash",
            "launch/local.sh",
            "2",
            "1",
            "--",
            *arguments(tmp_path, **{"train.batch_size": 5}),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 2
    assert done.stderr.count("bvit: train.batch_size") == 1
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="session")
def folder_with_a_broken_image(tmp_path_factory):
    """Class folders of a few images, one of which is broken."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 2)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    (folder / "train" / "cat" / "7.png").write_bytes(b"not an image")
    return folder


def test_an_unreadable_image_stops_the_run_by_name(folder_with_a_broken_image, run, tmp_path):
    settings = {"data.name": "folder", "data.dir": folder_with_a_broken_image}
    code, _, err = run(tmp_path, **settings)
    assert code == 1
    assert "cat/7.png" in err and "data.on_error=skip" in err
    assert "Traceback" not in err


def test_an_unreadable_image_can_be_skipped_and_is_counted(
    folder_with_a_broken_image, run, tmp_path
):
    settings = {"data.name": "folder", "data.dir": folder_with_a_broken_image}
    code, _, err = run(tmp_path, **settings, **{"data.on_error": "skip", "eval.policies": "keep"})
    assert code == 0, err
    # 8 steps of 16 of the 20 pictures: each comes six or seven times.
    assert re.search(r"[67] unreadable images skipped so far", err)
    assert "cat/7.png" in err


@pytest.mark.slow  # tests/test_checkpoint.py damages checkpoints without a run
def test_a_newest_checkpoint_that_is_damaged_is_skipped(finished, run, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "damaged")
    (workdir / "results.json").unlink()
    files = [path for path in (workdir / "checkpoints" / str(STEPS)).rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
    code, out, err = run(workdir)
    assert code == 0, err
    assert f"Checkpoint {STEPS} is damaged" in err and "from the checkpoint of step 6" in out
    assert losses(workdir) == losses(finished[0])
    assert accuracies(workdir) == accuracies(finished[0])


@pytest.mark.slow
def test_evaluation_does_not_depend_on_the_batch_size(finished, run, tmp_path):
    code, _, err = run(tmp_path / "seven", **{"eval.batch_size": 7})
    assert code == 0, err
    assert losses(tmp_path / "seven") == losses(finished[0])
    assert accuracies(tmp_path / "seven") == accuracies(finished[0])


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_first(start, tmp_path, signum):
    job = start(tmp_path / "run", **{"train.steps": 100_000, "checkpoint.every_steps": 9999})
    job.wait_until(lambda: (tmp_path / "run/metrics.jsonl").exists() and losses(tmp_path / "run"))
    job.kill(signum)
    code, _, err = job.wait()
    assert code == 128 + signum
    assert "is saved; run the same command to go on" in err
    assert "Traceback" not in err
    assert list((tmp_path / "run" / "checkpoints").glob("*.seal"))


def test_a_run_that_is_asked_to_stop_before_it_trains_just_does(start, tmp_path):
    job = start(tmp_path)
    job.wait_until(lambda: "devices" in job.printed()[0])
    job.kill(signal.SIGINT)
    code, _, err = job.wait()
    assert code == 128 + signal.SIGINT, err
    assert "run the same command to go on" in err and "Traceback" not in err


def test_divergence_stops_the_run_after_as_many_skipped_updates_as_allowed(run, tmp_path):
    settings = {"optimizer.learning_rate": 1e30, "optimizer.warmup": 0.0, "tokens.policy": "keep"}
    code, _, err = run(tmp_path, **settings, **{"train.skip_nonfinite": 3})
    assert code == 1
    assert "Skipped step 2" in err and "Skipped step 4" in err and "at step 5" in err
    assert "Traceback" not in err
    assert max(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]")) < 5


BAD_INPUT = {
    "misspelt key": ({"train.stps": 3}, "no such setting: 'stps'; Did you mean \"steps\""),
    "misspelt section": ({"trian.steps": 3}, "train"),
    "wrong type": ({"train.steps": "many"}, "train.steps"),
    "unknown condition": ({"train.condition": "bluur"}, "did you mean 'blur'"),
    "unknown policy": ({"eval.policies": "keep,zeero"}, "zeero"),
    "impossible budget": ({"eval.policies": "merge:8"}, "7"),
    "patches that do not fit": ({"model.patch_size": 7}, "patch_size"),
    "batch that devices cannot share": ({"train.batch_size": 6}, "train.batch_size"),
    "missing folder": ({"data.name": "folder", "data.dir": "/does/not/exist"}, "/does/not/exist"),
    "no such model": ({"model.name": "vit_tinny_patch16_224"}, "vit_tiny_patch16_224"),
    "colon in a policy": ({"eval.policies": "drop:half"}, "drop:32"),
    "profile beyond the training": ({"profile.steps": f"3,{STEPS + 1}"}, "profile.steps"),
    "warm-up longer than the training": ({"optimizer.warmup": 9.0}, "optimizer.warmup"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_an_error_of_one_line_before_anything_compiles(run, tmp_path, name):
    settings, word = BAD_INPUT[name]
    code, out, err = run(tmp_path / "run", devices=4, **settings)
    assert code == 2, (out, err)
    assert word in err
    assert "Traceback" not in err
    assert "Compiled" not in out


def test_a_run_directory_of_another_config_is_left_alone(finished, run):
    code, _, err = run(finished[0], **{"train.steps": STEPS + 1})
    assert code == 2
    assert f"train.steps was {STEPS}, now {STEPS + 1}" in err


def test_a_checkpoint_of_another_model_is_an_error(finished, run, tmp_path):
    workdir = tmp_path / "other"
    workdir.mkdir()
    (workdir / "checkpoints").symlink_to(finished[0] / "checkpoints")
    config = json.loads((finished[0] / "config.json").read_text())
    config["model"]["width"] = 48
    (workdir / "config.json").write_text(json.dumps(config))
    code, _, err = run(workdir, **{"model.width": 48})
    assert code == 2
    assert "another model" in err
