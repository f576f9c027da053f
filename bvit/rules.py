"""What every setting may be: one rule for each key, checked before anything compiles.

`bvit/config.py` has the defaults and the meanings, and the files in `configs/` the options of the
models.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

from bvit.config import valid_share, words
from bvit.data.decode import INTERPOLATIONS
from bvit.image.augment import MOST_OPERATIONS
from bvit.image.checks import short
from bvit.image.color import MAX_STRENGTHS
from bvit.image.focus_measures import FOCUS_MEASURES
from bvit.models.attention import IMPLEMENTATIONS
from bvit.models.encoder import ACTIVATIONS
from bvit.models.vit import POOLS

# What models may compute in.
DTYPES = ("float32", "bfloat16")
# jax.random.key takes seeds of 32 bits where x64 is off.
MOST_SEED = 2**32 - 1
# Counts of steps and of images are 32-bit integers on the device.
MOST = 2**31 - 1
# The estimate of the blur needs seven pixels a side; a larger side is a typing mistake.
LEAST_SIDE, MOST_SIDE = 8, 2**13
MOST_WORKERS = 1024
# Patches of an image are counted in 32 bits, layers of a network in hundreds.
MOST_WIDTH, MOST_DEPTH = 2**16, 1000


@dataclasses.dataclass(frozen=True)
class Rule:
    """What one key may be.

    Attributes:
      wanted: in words, behind "must be".
      holds: says of a plain value (of JSON) whether it may be that.
    """

    wanted: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def whole(low: int, high: int = MOST, *, note: str = "") -> Rule:
    """A whole number from `low` to `high`."""
    wanted = f"a whole number from {low} to {high}" if high < MOST else f"a whole number >= {low}"
    return Rule(wanted + note, lambda value: _is_whole(value) and low <= value <= high)


def number(low: float = -math.inf, high: float = math.inf, *, note: str = "") -> Rule:
    """A finite number from `low` to `high`, both included."""
    wanted = f"a number >= {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
    return Rule(wanted + note, lambda value: _is_number(value) and low <= value <= high)


def above(low: float, *, most: float = math.inf, note: str = "") -> Rule:
    """A finite number above `low`."""
    wanted = f"a number above {low:g}" + (f" and at most {most:g}" if most < math.inf else "")
    return Rule(wanted + note, lambda value: _is_number(value) and low < value <= most)


def share(*, note: str = "") -> Rule:
    """A number in [0, 1)."""
    return Rule(
        f"a number from 0 to below 1{note}", lambda value: _is_number(value) and 0 <= value < 1
    )


def optional(rule: Rule) -> Rule:
    """What another rule wants, or None."""
    return Rule(f"{rule.wanted}, or None", lambda value: value is None or rule.holds(value))


def choice(*names: str) -> Rule:
    """One of some names."""
    return Rule(f"one of {', '.join(names)}", lambda value: value in names and value != "")


def several(least: str) -> Rule:
    """Names separated by commas, at least one."""
    return Rule(
        f"at least one name, as {least}",
        lambda value: isinstance(value, str) and bool(words(value)),
    )


def rgb(rule: Rule) -> Rule:
    """A value for each of red, green and blue."""
    return Rule(
        f"three numbers, for red, green and blue, each {rule.wanted}",
        lambda value: _is_list(value) and len(value) == 3 and all(map(rule.holds, value)),
    )


def _is_range(value: Any) -> bool:
    if not (_is_list(value) and len(value) == 2 and all(map(_is_number, value))):
        return False
    return 0 < value[0] <= value[1] <= 1


def _are_boundaries(value: Any) -> bool:
    if not (_is_list(value) and all(map(_is_number, value))):
        return False
    return all(0 < one < 1 for one in value) and list(value) == sorted(set(value))


def _are_strengths(value: Any) -> bool:
    if not (_is_list(value) and len(value) in (0, len(MAX_STRENGTHS))):
        return False
    limits = zip(value, MAX_STRENGTHS.values(), strict=False)
    return all(_is_number(one) and 0 <= one <= most for one, most in limits)


def _is_rand_augment(value: Any) -> bool:
    if not (_is_list(value) and len(value) in (0, 2)):
        return False
    limits = (whole(1, MOST_OPERATIONS), number(0, 1))
    return all(rule.holds(one) for rule, one in zip(limits, value, strict=False))


def _are_steps(value: Any) -> bool:
    if not (_is_list(value) and all(map(_is_whole, value))):
        return False
    return len(value) == 0 or (len(value) == 2 and 1 <= value[0] <= value[1])


def _is_valid_split(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    found = valid_share(value)
    return found is None or 0 < found < 1


TEXT = Rule("text", lambda value: isinstance(value, str))
NAME = Rule("a name", lambda value: isinstance(value, str) and bool(value.strip()))
FLAG = Rule("True or False", lambda value: isinstance(value, bool))
_AXIS = Rule(
    "a whole number >= 1, or -1 for all devices that are left",
    lambda value: _is_whole(value) and (value == -1 or 1 <= value <= MOST),
)

RULES: Mapping[str, Rule] = {
    "seed": whole(0, MOST_SEED),
    "init_from": TEXT,
    "init_head": FLAG,
    "data.name": NAME,
    "data.dir": TEXT,
    "data.train_split": TEXT,
    "data.test_split": TEXT,
    "data.valid": Rule(
        'a share of the training images above 0 and below 1, as "0.1", the name of a split, or "" '
        "(off)",
        _is_valid_split,
    ),
    "data.exclude": TEXT,
    "data.image_size": whole(LEAST_SIDE, MOST_SIDE),
    "data.resize": whole(0, 2 * MOST_SIDE, note=" (0: 256/224 of data.image_size)"),
    "data.interpolation": choice(*INTERPOLATIONS),
    "data.crop_scale": Rule("a range within (0, 1], as (0.08, 1.0)", _is_range),
    "data.flip": FLAG,
    "data.mean": rgb(number(0, 1)),
    "data.std": rgb(above(0)),
    "data.num_workers": whole(0, MOST_WORKERS, note=" (0: threads)"),
    "data.on_error": choice("raise", "skip"),
    "model.name": NAME,
    "model.dtype": choice(*DTYPES),
    "tokens.policy": several("keep"),
    "tokens.score": choice(*FOCUS_MEASURES),
    "tokens.threshold": optional(number(0)),
    "tokens.zero_at": choice("pixels", "normalized"),
    "train.condition": NAME,
    "train.steps": optional(whole(0, note=" (0: evaluate only)")),
    "train.epochs": optional(above(0)),
    "train.batch_size": whole(1),
    "train.accumulate": whole(1, note=" (1: off)"),
    "train.label_smoothing": share(note=" (0: off)"),
    "train.color_jitter": Rule(
        "() or strengths of brightness, contrast, saturation (up to 1) and hue (up to 0.5), as "
        "(0.4, 0.4, 0.4, 0.1)",
        _are_strengths,
    ),
    "train.rand_augment": Rule(
        f"() or a number of operations up to {MOST_OPERATIONS} and a magnitude from 0 to 1, as "
        "(2, 0.3)",
        _is_rand_augment,
    ),
    "train.mixup": number(0, note=" (0: off)"),
    "train.cutmix": number(0, note=" (0: off)"),
    "train.ema_decay": share(note=" (0: off)"),
    "train.distill": number(0, note=" (0: off)"),
    "train.distill_temperature": above(0),
    "train.sandwich": FLAG,
    "train.skip_nonfinite": whole(0),
    "train.patience": whole(0, note=" (0: off)"),
    "optimizer.name": choice("adamw", "sgd"),
    "optimizer.schedule": choice("cosine", "steps", "constant"),
    "optimizer.learning_rate": number(0),
    "optimizer.warmup": share(note=", a share of the training; e.g. 0.05"),
    "optimizer.boundaries": Rule(
        "rising shares of the training, each above 0 and below 1, as (0.33, 0.67), or ()",
        _are_boundaries,
    ),
    "optimizer.decay": above(0, most=1),
    "optimizer.momentum": share(),
    "optimizer.b2": share(),
    "optimizer.weight_decay": number(0),
    "optimizer.decay_all": FLAG,
    "optimizer.clip_norm": optional(above(0)),
    "eval.conditions": several("sharp"),
    "eval.policies": several("keep"),
    "eval.batch_size": whole(1),
    "eval.every_steps": whole(0, note=" (0: only at the end)"),
    "checkpoint.every_steps": whole(1),
    "checkpoint.keep": whole(1),
    "log.every_steps": whole(1),
    "profile.steps": Rule(
        "the first and the last step to trace, as 10,20, or () for no profile", _are_steps
    ),
    "mesh.data": _AXIS,
    "mesh.fsdp": _AXIS,
    "mesh.tensor": _AXIS,
}

# Of the options that `bvit.models.create` takes; None leaves what the model's name says.
MODEL_RULES: Mapping[str, Rule] = {
    "patch_size": optional(whole(1, MOST_SIDE)),
    "width": optional(whole(1, MOST_WIDTH)),
    "depth": optional(whole(1, MOST_DEPTH)),
    "num_heads": optional(whole(1, MOST_WIDTH)),
    "mlp_ratio": optional(above(0)),
    "pool": optional(choice(*POOLS)),
    "distilled": optional(FLAG),
    "registers": optional(whole(0)),
    "pre_norm": optional(FLAG),
    "activation": optional(choice(*ACTIVATIONS)),
    "norm_epsilon": optional(above(0)),
    "dropout": optional(share()),
    "stochastic_depth": optional(share()),
    "attention": optional(choice(*IMPLEMENTATIONS)),
    "remat": optional(FLAG),
    "stem": optional(choice("imagenet", "small")),
    "early_dilation": optional(whole(1, MOST_SIDE)),
    "zero_init_residual": optional(FLAG),
    "batch_norm": optional(FLAG),
    "hidden": optional(whole(1, MOST_WIDTH)),
    "aux_heads": optional(FLAG),
    "transform_input": optional(FLAG),
    "aux_dropout": optional(share()),
}


def check(settings: Mapping[str, Any]) -> None:
    """Checks every setting of a config.

    Args:
      settings: dotted key → plain value, as of `bvit.config.flatten`.

    Raises:
      ValueError: one is not what its rule wants, or there is no rule for it.
    """
    for key, value in settings.items():
        rule = _rule(key)
        if rule is None:
            known = [*RULES, *(f"model.{name}" for name in MODEL_RULES)]
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "take it out of the config."
            raise ValueError(f"{key} is no setting: {hint}")
        if not rule.holds(value):
            raise ValueError(f"{key} must be {rule.wanted}: got {short(value)}.")
    size, resize = settings["data.image_size"], settings["data.resize"]
    if resize and resize < size:
        raise ValueError(f"data.resize must be 0 or at least data.image_size={size}: got {resize}.")


def _rule(key: str) -> Rule | None:
    group, _, name = key.partition(".")
    if group == "model" and key not in RULES:
        return MODEL_RULES.get(name)
    return RULES.get(key)
