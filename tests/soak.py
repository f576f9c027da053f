"""Kills a training at random moments, again and again, and compares what comes out bit by bit.

python -m pytest tests/soak.py -s        # takes minutes; not part of the default run
"""

import json
import random

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jobs import TIMEOUT, Job
from test_main import arguments

KILLS = 20
STEPS = 1500
SETTINGS = {
    "train.steps": STEPS,
    "checkpoint.every_steps": 7,
    "eval.conditions": "sharp",
    "eval.policies": "keep",
    "eval.every_steps": 300,
}


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def final_state(workdir):
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((workdir / "checkpoints" / str(STEPS) / "default").absolute())
    return jax.tree.map(np.asarray, state)


@pytest.mark.slow
def test_killed_at_random_moments_the_result_is_the_same_bit_by_bit(tmp_path):
    def start(name):
        workdir = tmp_path / name
        return Job(arguments(workdir, **SETTINGS), tmp_path / "out", cache=tmp_path / "cache")

    code, _, err = start("undisturbed").wait(10 * TIMEOUT)
    assert code == 0, err
    moments = random.Random(0)
    for kill in range(KILLS):
        job = start("killed")
        if kill % 3:  # while training or evaluating; else while starting, restoring, compiling
            job.wait_until(lambda job=job: "training:" in job.printed()[1])
        delay = moments.uniform(0, 4)
        job.pause(delay)
        step = max(losses(tmp_path / "killed"), default=0) if kill % 3 else "-"
        assert job.alive(), job.printed()
        job.kill()
        job.wait()
        print(f"kill {kill + 1}: {delay:.2f} s, step {step}", flush=True)
    code, _, err = start("killed").wait(10 * TIMEOUT)
    assert code == 0, err
    assert losses(tmp_path / "killed") == losses(tmp_path / "undisturbed")
    states = [final_state(tmp_path / name) for name in ("killed", "undisturbed")]
    print(f"{len(jax.tree.leaves(states[0]))} arrays compared")
    jax.tree.map(np.testing.assert_array_equal, *states)
