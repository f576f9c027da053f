"""What is checked before anything compiles."""

import importlib

import jax
import jax.numpy as jnp
import pytest
from trained import run_directory

from bvit import config as config_lib
from bvit.experiment import prepare
from configs import pretrained, vit_mask


def test_evaluation_alone_needs_weights():
    config = pretrained.get_config("resnet18,data=photos")
    with pytest.raises(ValueError, match="set init_from"):
        prepare(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("log.every_steps", 0),
        ("checkpoint.every_steps", 0),
        ("checkpoint.keep", 0),
        ("eval.every_steps", -1),
        ("eval.conditions", ""),
        ("eval.policies", " , "),
        ("tokens.policy", ""),
        ("seed", -1),
        ("data.crop_scale", (0.5, 0.2)),
        ("data.on_error", "ignore"),
        ("data.resize", 63),
        ("model.dtype", "float31"),
        ("train.color_jitter", (0.4, 0.4)),
        ("train.color_jitter", (0.4, 0.4, 0.4, 0.6)),
        ("train.distill", -0.5),
        ("train.distill_temperature", 0.0),
    ],
)
def test_values_that_would_fail_after_compiling_are_errors_before(key, value):
    config = vit_mask.get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=f"{key} must be"):
        prepare(config)


@pytest.mark.parametrize(
    ("name", "arguments", "policies", "message"),
    [
        ("cnn_blur", "googlenet", "zero", "{} .*googlenet has none"),
        ("vit_mask", "", "keep", "{} needs .* besides keep"),
    ],
)
@pytest.mark.parametrize(("setting", "on"), [("train.distill", 1.0), ("train.sandwich", True)])
def test_a_full_pass_needs_tokens_to_leave_out(name, arguments, policies, message, setting, on):
    config = importlib.import_module(f"configs.{name}").get_config(arguments)
    config.update_from_flattened_dict({setting: on, "tokens.policy": policies})
    message = message.format(setting)
    with pytest.raises(ValueError, match=message):
        prepare(config)


@pytest.mark.parametrize("steps", [(), (1, 1), (3, 8)])
def test_profiles_within_the_training_are_fine(steps):
    config = vit_mask.get_config()
    config.train.steps, config.profile.steps = 8, steps
    prepare(config)


@pytest.mark.parametrize("steps", [(3,), (1, 2, 3), (1.0, 2), ("a", "b"), (0, 3), (3, 2), (3, 9)])
def test_other_profiles_are_an_error(steps):
    config = vit_mask.get_config()
    config.train.steps, config.profile.steps = 8, steps
    with pytest.raises(ValueError, match="profile.steps must"):
        prepare(config)


def test_an_evaluation_has_no_optimizer_state():
    config = vit_mask.get_config()
    assert jax.tree.leaves(prepare(config).optimizer.init({"kernel": jnp.ones(3)}))
    trained = config_lib.load(run_directory() / "config.json")
    config.model, config.data.image_size = trained.model, trained.data.image_size
    config.init_from, config.train.steps = str(run_directory()), 0
    assert not jax.tree.leaves(prepare(config).optimizer.init({"kernel": jnp.ones(3)}))
