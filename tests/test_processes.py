"""Several processes of two devices each give the numbers of one process, whatever the layout."""

import numpy as np
import pytest
from jobs import Job, joined
from test_main import arguments

from bvit.run import Run

SETTINGS = {
    "train.steps": 3,
    "train.condition": "sharp",
    "optimizer.warmup": 0.0,
    "tokens.policy": "keep",
    "eval.conditions": "sharp",
    "eval.policies": "keep",
    "eval.batch_size": 128,
}

# Processes; the order of all devices in the mesh, i being one of process i // 2; settings.
LAYOUTS = {
    "tensor over two": (2, None, {"mesh.tensor": 4}),
    "fsdp over two, by turns": (2, [0, 2, 1, 3], {"mesh.data": 1, "mesh.fsdp": 4}),
    "data over four, by turns": (4, [0, 4, 2, 6, 1, 5, 3, 7], {"mesh.data": 8}),
    "tensor over two of four": (4, None, {"mesh.fsdp": 2, "mesh.tensor": 4}),
    "all over four": (4, [0, 4, 2, 6, 1, 5, 3, 7], {"mesh.fsdp": 2, "mesh.tensor": 2}),
    "one of three holds all rows": (3, None, {"mesh.tensor": 3}),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process with one device."""
    folder = tmp_path_factory.mktemp("alone")
    flags = arguments(folder / "run", **SETTINGS)
    code, _, err = Job(flags, folder, cache=folder / "compiled").wait()
    assert code == 0, err
    return Run(folder / "run")


@pytest.mark.parametrize(
    "layout",
    [pytest.param(name, marks=[pytest.mark.slow] * (LAYOUTS[name][0] > 2)) for name in LAYOUTS],
)
def test_the_losses_and_answers_are_those_of_one_process(alone, tmp_path, layout):
    processes, order, mesh = LAYOUTS[layout]
    jobs = joined(
        arguments(tmp_path / "run", **SETTINGS, **mesh),
        tmp_path,
        processes,
        devices=2,
        cache=tmp_path / "compiled",
        order=order,
    )
    for job in jobs:
        code, _, err = job.wait()
        assert code == 0, err
    run = Run(tmp_path / "run")
    one, several = ([line["loss"] for line in found.metrics] for found in (alone, run))
    assert len(several) == SETTINGS["train.steps"]
    np.testing.assert_allclose(several, one, rtol=1e-5)
    np.testing.assert_array_equal(run.answers.index, alone.answers.index)
    for cell, rank in run.answers.ranks.items():
        # Rounding may let two classes change places.
        assert np.mean(rank != alone.answers.ranks[cell]) < 0.02
