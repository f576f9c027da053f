"""Nothing moves between host and devices but what is meant to."""

import contextlib

import jax
import numpy as np
import pytest
from jax._src.array import ArrayImpl
from jax._src.lib import guard_lib
from test_main import TINY

import bvit
from bvit import config as config_lib
from bvit import experiment as experiment_lib
from bvit import image, sharding
from bvit.checkpoint import Checkpoints
from bvit.interrupt import SignalWatch
from bvit.run import EVALUATIONS, Run
from bvit.training import loop
from bvit.training.metrics import MetricsWriter
from bvit.training.profile import StepTrace
from configs.vit_mask import get_config

SHAPE = (32, 32, 3)
SETTINGS = TINY | {
    "train.steps": 4,
    "train.condition": "sharp",
    "tokens.policy": "keep",
    "checkpoint.every_steps": 1,
    "eval.conditions": "sharp",
    "eval.policies": "keep",
    "eval.every_steps": 2,
    "eval.batch_size": 64,
}


@pytest.fixture
def guarded_reads(monkeypatch):
    """Makes JAX's guard stop reads by the host; on a CPU it lets them pass, as nothing moves."""
    read = ArrayImpl._value.fget

    def guarded(array):
        state = guard_lib.thread_local_state()
        guarded = state.device_to_host == guard_lib.TransferGuardLevel.DISALLOW
        assert state.explicit_device_get or not guarded, f"{array.shape} is read without device_get"
        return read(array)

    monkeypatch.setattr(ArrayImpl, "_value", property(guarded))


def on_devices(value):
    return jax.device_put(value, sharding.replicated(sharding.make_mesh()))


@pytest.mark.parametrize("read", [float, int, bool, np.asarray])
def test_the_guard_sees_what_the_host_reads(guarded_reads, read):
    with jax.transfer_guard("disallow"):
        assert jax.device_get(on_devices(1.0)) == 1
        with pytest.raises(AssertionError, match="is read without device_get"):
            read(on_devices(1.0))


PUBLIC = {
    "gaussian_blur": lambda pixels, one: bvit.gaussian_blur(pixels, one),
    "variable_gaussian_blur": lambda pixels, one: image.variable_gaussian_blur(
        pixels, on_devices(np.ones(SHAPE[:2], np.float32))
    ),
    "wiener": lambda pixels, one: image.deblur.wiener(
        pixels, on_devices(np.ones((3, 3), np.float32)), noise_to_signal=one
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_functions_of_pixels_do_not_wait_for_their_arguments(guarded_reads, name):
    pixels = on_devices(np.full(SHAPE, 0.5, np.float32))
    with jax.transfer_guard_device_to_host("disallow"):
        PUBLIC[name](pixels, on_devices(np.float32(1)))


def test_training_and_evaluation_move_what_is_meant_and_no_more(guarded_reads, tmp_path):
    config = get_config()
    config.update_from_flattened_dict(SETTINGS)
    experiment = experiment_lib.prepare(config)
    run = Run.begin(tmp_path / "run", config_lib.to_dict(config))
    with (
        contextlib.closing(run),
        contextlib.closing(Checkpoints(run.checkpoints)) as checkpoints,
        contextlib.closing(MetricsWriter(run.path)) as writer,
        contextlib.closing(StepTrace((), run.path)) as trace,
    ):
        state = loop._restore_or_create(experiment, checkpoints)
        evaluator = experiment_lib.make_evaluator(experiment)
        with jax.transfer_guard("disallow"):
            loop.train(experiment, state, checkpoints, writer, trace, evaluator, SignalWatch())
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4]
    assert (run.path / EVALUATIONS).read_text().count("\n") == 1
