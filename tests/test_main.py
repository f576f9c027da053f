"""The main job from the outside: what a person types, sees, and finds in the run directory."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
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


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Starts the main job with a tiny model in a process of its own."""
    cache = tmp_path_factory.mktemp("compiled")

    def start(workdir, *, config="configs/vit_mask.py", devices=1, **settings):
        flags = [f"--config.{k}={v}" for k, v in (TINY | settings).items() if v is not None]
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            # Runs of this session share what they compile.
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONUNBUFFERED": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "bvit.main", f"--config={config}", f"--workdir={workdir}", *flags],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def run(start):
    """Runs the main job to its end; returns (exit code, stdout, stderr)."""

    def run(*args, **kwargs):
        process = start(*args, **kwargs)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    return run


@pytest.fixture(scope="session")
def finished(run, tmp_path_factory):
    """A run directory of a whole, undisturbed run, and what the run printed."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    code, out, err = run(workdir)
    assert code == 0, err
    return workdir, out, err


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def accuracies(workdir):
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    return [(row["condition"], row["policy"], row["top1"], row["top5"]) for row in rows]


def test_a_run_tells_what_it_is_and_where_everything_lies(finished):
    workdir, out, err = finished
    for word in ("devices", "parameters", "GFLOPs", "tokens", "training and", "nearest neighbour"):
        assert word in out
    assert "| sharp " in out and "| region " in out
    assert f"{STEPS}/{STEPS}" in err  # the progress bar
    for name in ("config.json", "metrics.jsonl", "results.json", "figures/accuracy.png"):
        assert (workdir / name).stat().st_size > 0
    assert (workdir / "checkpoints" / str(STEPS)).is_dir()
    assert list((workdir / "tensorboard").glob("events*"))
    assert not list(workdir.rglob("*.partial"))


def test_results_hold_a_row_for_each_condition_and_policy(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    rows = {(row["condition"], row["policy"], row["budget"]): row for row in results["rows"]}
    assert len(rows) == len(results["rows"]) == 9
    for row in rows.values():
        assert row["n"] == rows["sharp", "keep", None]["n"] > 100
        assert 0 <= row["ci95"][0] <= row["top1"] <= row["ci95"][1] <= 1
        assert row["top1"] <= row["top5"] <= 1
        assert row["images_per_s"] > 0
    assert rows["sharp", "keep", None]["tokens"] == 16
    assert rows["blur", "merge", 7]["tokens"] == 7
    assert rows["sharp", "merge", 7]["gflops"] < 0.6 * rows["sharp", "keep", None]["gflops"]
    assert results["step"] == STEPS
    assert results["config"]["train"]["steps"] == STEPS


def test_a_finished_run_says_so(finished, run):
    workdir, out, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    code, again, _ = run(workdir)
    assert code == 0
    assert "finished" in again
    assert out[out.index("| condition") :] == again[again.index("| condition") :]
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_killed_run_goes_on_to_the_same_numbers(finished, start, run, tmp_path):
    workdir = tmp_path / "killed"
    process = start(workdir)
    deadline = time.monotonic() + 200
    while not list(workdir.glob("checkpoints/[36]")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    code, out, err = run(workdir)
    assert code == 0, err
    assert losses(workdir) == losses(finished[0])
    assert accuracies(workdir) == accuracies(finished[0])


def test_the_losses_are_the_same_on_eight_devices(finished, run, tmp_path):
    code, _, err = run(tmp_path / "eight", devices=8, **{"mesh.fsdp": 2})
    assert code == 0, err
    one, eight = losses(finished[0]), losses(tmp_path / "eight")
    assert one.keys() == eight.keys()
    np.testing.assert_allclose(list(eight.values()), list(one.values()), rtol=1e-4)


def test_evaluation_does_not_depend_on_the_batch_size(finished, run, tmp_path):
    code, _, err = run(tmp_path / "seven", **{"eval.batch_size": 7})
    assert code == 0, err
    assert losses(tmp_path / "seven") == losses(finished[0])
    assert accuracies(tmp_path / "seven") == accuracies(finished[0])


def test_a_terminated_run_saves_first(start, run, tmp_path):
    process = start(tmp_path / "stopped", **{"train.steps": 100_000, "checkpoint.every_steps": 9999})
    for line in process.stderr:
        if "1/100000" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "run the same command to go on" in err
    assert "Traceback" not in err
    assert list((tmp_path / "stopped" / "checkpoints").glob("*.seal"))


def test_divergence_stops_the_run_and_keeps_the_last_checkpoint(run, tmp_path):
    code, _, err = run(tmp_path, **{"optimizer.learning_rate": 1e30, "optimizer.warmup": 0.0})
    assert code == 1
    assert "at step 2" in err and "Traceback" not in err
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
    code, _, err = run(
        tmp_path / "skip",
        **{
            "optimizer.learning_rate": 1e30,
            "optimizer.warmup": 0.0,
            "train.skip_nonfinite": 3,
        },
    )
    assert code == 1
    assert "Skipped step 4" in err and "at step 5" in err


BAD_INPUT = {
    "misspelt key": ({"train.stps": 3}, "steps"),
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
    "warm-up longer than the training": ({"optimizer.warmup": 9.0}, "optimizer.warmup"),
}


def test_bad_input_is_told_in_one_line_before_anything_compiles(start, tmp_path):
    names = list(BAD_INPUT)
    for pair in zip(names[::2], names[1::2], strict=True):  # two at a time: importing takes seconds
        running = {n: start(tmp_path / n, devices=4, **BAD_INPUT[n][0]) for n in pair}
        for name, process in running.items():
            out, err = process.communicate(timeout=120)
            assert process.returncode == 2, (name, out, err)
            assert BAD_INPUT[name][1] in err, (name, err)
            assert "Traceback" not in err, (name, err)
            assert "Compiled" not in out, name


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
