"""Every setting has a rule. A bad value is an error before anything compiles."""

import importlib
import math
import random

import pytest

from bvit import config as config_lib
from bvit import rules
from bvit.experiment import prepare
from configs import vit_mask

CONFIGS = [
    ("cnn_blur", "resnet50"),
    ("cnn_blur", "vgg16,data=folder"),
    ("cnn_blur", "googlenet"),
    ("deblur_or_not", "model=resnet50"),
    ("finetune", "data=folder"),
    ("finetune", "model=resnet50,data=folder"),
    ("pretrained", "resnet18,data=photos"),
    ("vit_mask", ""),
    ("vit_mask", "folder"),
    ("vit_mask", "imagenet2012"),
]
NOT_FINITE = (math.nan, math.inf, -math.inf)
# What nothing that wants a number, a name, a flag or a list takes.
NO_NUMBER = ("one", "", [1], {}, *NOT_FINITE)
NO_TEXT = (0, 1.5, [], {})
NO_FLAG = (0, 1, 0.5, "yes", "", [], None)
NO_LIST = (0, 0.5, "a", None)


def numbers(draw, low=None, high=None, whole=False, optional=False):
    """Values outside of [low, high], or of another kind; drawn anew each time."""
    bad = [*NO_NUMBER, True] + [None] * (not optional)
    if whole:
        bad += [0.5, draw.uniform(0, 1) + 2]
    if low is not None:
        bad += [low - 1, low - draw.randint(1, 10**6), -(2**40)]
        bad += [] if whole else [low - draw.uniform(1e-6, 1)]
    if high is not None:
        bad += [high + 1, high + draw.randint(1, 10**9)]
        bad += [] if whole else [high + draw.uniform(1e-6, 1)]
    return bad


def rgb(draw, *wrong):
    return [(0.5,), (0.5, 0.5), (0.5,) * 4, *NO_LIST, ("a", 0.1, 0.1)] + [
        tuple(value if i == place else 0.5 for i in range(3)) for value in wrong for place in (0, 2)
    ]


def bad_values(draw):
    """Key → values that it must not have. Written by hand, apart from the rules."""

    def whole(low, high=None, optional=False):
        return numbers(draw, low, high, whole=True, optional=optional)

    share = [*numbers(draw, 0, 1), 1, 1.0, 2, 1.5]
    above_0 = [*numbers(draw, 0), 0, 0.0]
    name = [*NO_TEXT, None, "", "  "]
    axis = [*numbers(draw, whole=True), 0, -2, -draw.randint(2, 99)]
    several = [*NO_TEXT, None, "", " , ", "()"]
    text = [*NO_TEXT, None]
    return {
        "seed": whole(0, 2**32 - 1),
        "init_from": text,
        "init_head": NO_FLAG,
        "data.name": name,
        "data.dir": text,
        "data.train_split": text,
        "data.test_split": text,
        "data.valid": [*text, "0", "1", "1.5", "-0.1", "nan"],
        "data.exclude": text,
        "data.image_size": [*whole(1, 2**13), 0, 1, 7],
        "data.resize": [*whole(0, 2**14), 63],
        "data.interpolation": [*name, "cubic", "Bilinear"],
        "data.crop_scale": [
            *((0.5, 0.2), (0, 1), (0.1, 1.1), (-0.1, 1), (0.5,), (0.1, 0.5, 1), ()),
            *NO_LIST,
            ("a", "b"),
            (math.nan, 1),
        ],
        "data.flip": NO_FLAG,
        "data.mean": rgb(draw, -0.1, 1.1, 124, *NOT_FINITE),
        "data.std": rgb(draw, 0, -0.2, *NOT_FINITE),
        "data.num_workers": [*whole(0, 1024), -1, 10**6],
        "data.on_error": [*name, "ignore"],
        "model.name": name,
        "model.dtype": [*name, "float31", "float16", "int8"],
        "tokens.policy": several,
        "tokens.score": [*name, "laplace", "Relative"],
        "tokens.threshold": numbers(draw, 0, optional=True),
        "tokens.zero_at": [*name, "pixel"],
        "train.condition": name,
        "train.steps": [*whole(0, optional=True), 2**31],
        "train.epochs": [v for v in above_0 if v is not None],
        "train.batch_size": [*whole(1), 0, 2**31],
        "train.accumulate": [*whole(1), 0],
        "train.label_smoothing": share,
        "train.color_jitter": [
            *((0.4, 0.4), (0.4, 0.4, 0.4, 0.6), (1.1, 0, 0, 0), (-0.1, 0, 0, 0), (0.1,) * 5),
            *NO_LIST,
            ("a",) * 4,
        ],
        "train.rand_augment": [
            (2,),
            (0, 0.5),
            (2, 1.5),
            (2, -0.1),
            (2.5, 0.5),
            (99, 0.5),
            *NO_LIST,
        ],
        "train.cutmix": [*numbers(draw, 0), -1],
        "train.mixup": [*numbers(draw, 0), -1],
        "train.ema_decay": share,
        "train.distill": numbers(draw, 0),
        "train.distill_temperature": above_0,
        "train.sandwich": NO_FLAG,
        "train.skip_nonfinite": whole(0),
        "train.patience": whole(0),
        "optimizer.name": [*name, "adam"],
        "optimizer.schedule": [*name, "linear"],
        "optimizer.learning_rate": [*numbers(draw, 0), -1],
        "optimizer.warmup": share,
        "optimizer.boundaries": [(0.5, 0.2), (0.5, 0.5), (0,), (1.0,), (30, 60), *NO_LIST],
        "optimizer.decay": [*above_0, -3, 1.1, 10],
        "optimizer.momentum": share,
        "optimizer.b2": share,
        "optimizer.weight_decay": [*numbers(draw, 0), -1],
        "optimizer.decay_all": NO_FLAG,
        "optimizer.clip_norm": [v for v in above_0 if v is not None],
        "eval.conditions": several,
        "eval.policies": several,
        "eval.batch_size": [*whole(1), 0],
        "eval.every_steps": whole(0),
        "checkpoint.every_steps": [*whole(1), 0],
        "checkpoint.keep": [*whole(1), 0],
        "log.every_steps": [*whole(1), 0],
        "profile.steps": [(3,), (1, 2, 3), (1.0, 2), ("a", "b"), (0, 3), (3, 2), *NO_LIST],
        "mesh.data": axis,
        "mesh.fsdp": axis,
        "mesh.tensor": axis,
        "model.patch_size": whole(1, 2**13, optional=True),
        "model.width": whole(1, 2**16, optional=True),
        "model.depth": whole(1, 1000, optional=True),
        "model.num_heads": whole(1, 2**16, optional=True),
        "model.mlp_ratio": [v for v in above_0 if v is not None],
        "model.pool": ["max", "", 1],
        "model.dropout": [v for v in share if v is not None],
        "model.stochastic_depth": [v for v in share if v is not None],
        "model.attention": ["flash", "", 1],
        "model.distilled": [v for v in NO_FLAG if v is not None],
        "model.registers": whole(0, optional=True),
        "model.pre_norm": [v for v in NO_FLAG if v is not None],
        "model.activation": ["relu", "", 1],
        "model.norm_epsilon": [v for v in above_0 if v is not None],
        "model.remat": [v for v in NO_FLAG if v is not None],
        "model.stem": ["large", "", 1],
        "model.early_dilation": whole(1, optional=True),
        "model.zero_init_residual": [v for v in NO_FLAG if v is not None],
        "model.batch_norm": [v for v in NO_FLAG if v is not None],
        "model.hidden": whole(1, 2**16, optional=True),
        "model.aux_heads": [v for v in NO_FLAG if v is not None],
        "model.transform_input": [v for v in NO_FLAG if v is not None],
        "model.aux_dropout": [v for v in share if v is not None],
    }


KEYS = sorted(bad_values(random.Random(0)))


def settings(name="vit_mask", arguments=""):
    config = importlib.import_module(f"configs.{name}").get_config(arguments)
    return config_lib.flatten(config_lib.to_dict(config))


@pytest.mark.parametrize("name, arguments", CONFIGS)
def test_every_setting_of_every_config_has_a_rule_that_it_keeps(name, arguments):
    found = settings(name, arguments)
    rules.check(found)
    assert found.keys() <= set(KEYS)


def test_every_rule_is_tried_here():
    assert set(KEYS) == {*rules.RULES, *(f"model.{name}" for name in rules.MODEL_RULES)}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("seed", [0, 1])
def test_bad_values_are_told_with_the_key_what_is_wanted_and_what_came(key, seed):
    good = settings()
    values = bad_values(random.Random(seed))[key]
    assert len(values) >= 3
    for value in values:
        with pytest.raises(ValueError) as error:
            rules.check(good | {key: value})
        message = str(error.value)
        assert message.startswith(f"{key} must be ") and "\n" not in message, value
        assert rules.short(value) in message and len(message) < 300, value


@pytest.mark.parametrize(
    "key, value",
    [
        ("train.steps", 0),
        ("train.steps", None),
        ("train.epochs", 90),
        ("train.color_jitter", [0.4, 0.4, 0.4, 0.1]),
        ("optimizer.boundaries", [1 / 3, 2 / 3]),
        ("optimizer.learning_rate", 0),
        ("optimizer.clip_norm", None),
        ("mesh.data", 8),
        ("profile.steps", [1, 1]),
        ("data.resize", 64),
        ("model.depth", None),
    ],
)
def test_good_values_at_the_border_pass(key, value):
    rules.check(settings() | {key: value})


def test_a_key_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="no setting: did you mean model.patch_size"):
        rules.check(settings() | {"model.patchsize": 8})
    with pytest.raises(ValueError, match="no setting"):
        rules.check(settings() | {"weather": "fine"})


def test_a_long_value_is_cut_short():
    with pytest.raises(ValueError) as error:
        rules.check(settings() | {"data.mean": [0.5] * 100_000})
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("key, value", [("optimizer.b2", 1.5), ("train.batch_size", 0)])
def test_nothing_is_built_before_the_check(key, value, monkeypatch):
    config = vit_mask.get_config()
    config.update_from_flattened_dict({key: value})
    monkeypatch.setattr("bvit.experiment.build_model", lambda *_: pytest.fail("built"))
    with pytest.raises(ValueError, match=f"{key} must be .*: got {value}"):
        prepare(config)
