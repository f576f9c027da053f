"""The plan of a run against the run itself, on eight simulated devices."""

import functools

import jax
import numpy as np
import pytest
from absl import flags

from bvit import config_flag, plan
from bvit.experiment import prepare
from bvit.planning import chips, program
from bvit.sharding import MIN_FSDP_ELEMENTS
from bvit.training.loop import lower_step
from bvit.training.state import create_state
from configs.vit_mask import get_config

CLASSES = 16  # of the embedded photographs
TINY = {
    "data.image_size": 32,
    "model.patch_size": 8,
    "model.width": 64,
    "model.depth": 1,
    "model.num_heads": 2,
    "tokens.policy": "keep",
    "train.condition": "sharp",
    "train.batch_size": 64,
}


def tiny(**settings):
    config = get_config()
    config.update_from_flattened_dict(TINY | settings)
    return config


@functools.cache
def planned(**settings):
    settings = {key.replace("__", "."): value for key, value in settings.items()}
    experiment = plan.outline(tiny(**settings), CLASSES, jax.devices())
    (one,) = plan.make_plans(experiment)
    return experiment, one


@pytest.mark.parametrize("fsdp", [1, 8])
def test_bytes_are_those_of_the_step_that_main_compiles(fsdp):
    _, found = planned(mesh__fsdp=fsdp)
    experiment = prepare(tiny(**{"mesh.fsdp": fsdp}))
    create = functools.partial(
        create_state,
        model=experiment.model,
        optimizer=experiment.optimizer,
        image_size=experiment.config.data.image_size,
    )
    places = jax.tree.map(lambda leaf: leaf.sharding, plan.abstract_state(experiment))
    state = jax.jit(create, out_shardings=places)(jax.random.key(0))
    held = [
        sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(part))
        for part in (state.params, (state.step, state.opt_state))
    ]
    assert [found.parameters, found.optimizer] == held
    memory = lower_step(experiment, experiment.train_policies[0], state).compile().memory_analysis()
    size, shares = experiment.config.data.image_size, jax.device_count()
    batch = experiment.config.train.batch_size * (3 * size**2 + 4) // shares  # and the labels
    wanted = memory.argument_size_in_bytes - batch
    assert found.parameters + found.optimizer == pytest.approx(wanted, rel=0.05)
    assert found.needs.temporaries == pytest.approx(memory.temp_size_in_bytes, rel=0.2)


def test_a_split_state_is_a_share_and_its_gathers_are_messages():
    (_, whole), (experiment, split) = planned(mesh__fsdp=1), planned(mesh__fsdp=8)
    assert split.parameters < 0.25 * whole.parameters
    assert whole.needs.messages.keys() == {"all-reduce"}
    summed = whole.needs.messages["all-reduce"].nbytes
    assert summed == pytest.approx(whole.parameters, rel=0.02)
    large = [
        leaf.size * 4
        for leaf in jax.tree.leaves(plan.abstract_state(experiment).params)
        if leaf.size >= MIN_FSDP_ELEMENTS
    ]
    gathered = split.needs.messages["all-gather"]
    assert 0 < gathered.nbytes <= 2 * sum(large) and gathered.count <= 2 * len(large)


def test_a_batch_in_parts_repeats_its_messages_and_not_its_operations():
    (_, once), (_, parts) = planned(mesh__fsdp=8), planned(mesh__fsdp=8, train__accumulate=4)
    sent = [one.needs.messages["all-gather"].nbytes for one in (once, parts)]
    assert sent[0] < sent[1] <= 4 * sent[0]  # the compiler takes some out of the loop
    assert parts.flops == pytest.approx(once.flops, rel=0.2)


def test_the_operations_are_those_of_the_network():
    experiment, one = planned(mesh__fsdp=1)
    params = plan.abstract_state(experiment).params["blocks_0"]
    kernels = sum(leaf.size for leaf in jax.tree.leaves(params) if len(leaf.shape) > 1)
    # Two operations for each weight and token, three times: forwards, and backwards for both.
    tokens, images = 17, experiment.config.train.batch_size // 8
    wanted = 6 * experiment.config.model.depth * kernels * tokens * images
    assert wanted < one.flops < 2 * wanted


def test_the_largest_temporary_has_a_name():
    _, one = planned(mesh__fsdp=1)
    size, name = one.needs.largest, one.needs.largest_name
    assert 0 < size < one.needs.temporaries
    dims = name.partition("[")[2].partition("]")[0]
    assert name.startswith("f32[") and 4 * np.prod([int(n) for n in dims.split(",")]) == size


def test_what_is_to_be_changed_makes_it_fit():
    experiment, one = planned(mesh__fsdp=1)
    state = one.parameters + one.optimizer
    there = state + one.needs.temporaries / 4
    text = plan.changes(experiment, one.needs.temporaries, state, there)
    assert "mesh.fsdp to 8" in text and "remat to True" in text and "bfloat16" in text
    parts = int(text.partition("train.accumulate to ")[2].partition(",")[0])
    _, smaller = planned(mesh__fsdp=8, train__accumulate=parts)
    assert smaller.total < planned(mesh__fsdp=8)[1].total
    assert planned(mesh__fsdp=8)[1].total < one.total


def test_a_run_that_only_evaluates_is_planned_too():
    settings = {"train.steps": 0, "init_from": "weights", "eval.policies": "keep,merge:7"}
    experiment = plan.outline(tiny(**settings), CLASSES, jax.devices())
    keep, merge = plan.make_plans(experiment)
    assert keep.optimizer == 0 and not keep.needs.messages
    assert merge.flops < keep.flops
    assert plan.changes(experiment, 1, 1, 1).endswith("eval.batch_size to 32 or less")


def test_a_loop_of_messages_is_counted_as_often_as_it_runs():
    text = """
%inner (z: f32[8]) -> f32[8] {
  %sent = f32[8]{0} collective-permute(%z), channel_id=4
}

%body (x: f32[8]) -> f32[8] {
  %gathered = f32[64]{0} all-gather(%x), channel_id=3
  %nested = f32[8]{0} while(%x), body=%inner, backend_config={"known_trip_count":{"n":"3"}}
}

ENTRY %main (y: f32[8]) -> f32[8] {
  %start = (f32[8]{0}, f32[64]{0}) all-gather-start(%y), channel_id=1
  %sum = (f32[2,3]{1,0}, /*index=1*/bf16[4]{0}) all-reduce(%a, %b), channel_id=2
  %loop = f32[8]{0} while(%y), body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""

    found = program.messages(text)
    assert (found["all-gather"].count, found["all-gather"].nbytes) == (6, 6 * 64 * 4)
    assert (found["all-reduce"].count, found["all-reduce"].nbytes) == (1, 6 * 4 + 4 * 2)
    assert found["collective-permute"].count == 15


def test_devices_as_people_type_them():
    assert (chips.parse("v5e:4x4").count, chips.parse("v5p:2x2x4").count) == (16, 16)
    eight = chips.parse("gpu:8xH100")
    assert eight.count == 8 and eight.chip is chips.GPUS["H100"] and not eight.is_tpu
    assert chips.parse("cpu:8").chip is None
    for text in ("v5e", "v5e:16", "gpu:H100", "gpu:8xH10", "v4:2x2", "cpu:0", "8"):
        with pytest.raises(ValueError, match="v5e:4x4, GPUs"):
            chips.parse(text)
    with pytest.raises(ValueError, match="did you mean H100"):
        chips.parse("gpu:8xH10")


def test_the_command_prints_a_table_and_a_verdict(monkeypatch, capsys):
    settings = [f"--config.{key}={value}" for key, value in TINY.items()]
    argv = ["bvit.plan", "--config=configs/vit_mask.py", "--devices=gpu:8xH100", *settings]
    monkeypatch.setattr("sys.argv", argv)  # where the flag --config looks for settings
    monkeypatch.setenv("XLA_FLAGS", "")  # is changed, and put back
    config_flag.parse(argv)
    plan.main(argv[:1])
    out = capsys.readouterr().out
    for word in ("8 simulated", "parameters", "optimizer", "all-reduce", "compute, least time"):
        assert word in out
    assert "It fits: at most" in out and "of 60.0 GB" in out  # JAX takes three quarters of 80
    monkeypatch.setattr(flags.FLAGS, "devices", "gpu:8xH10")
    with pytest.raises(SystemExit, match="2"):
        plan.main(["bvit.plan"])
    err = capsys.readouterr().err
    assert err.startswith("bvit: --devices must be") and err.count("\n") == 1
