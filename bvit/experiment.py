"""From a config to the pieces of a run: the one place that unpacks settings, and checks them."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from bvit import config as config_lib
from bvit import data, models, sharding
from bvit.classify import check
from bvit.data.subset import Subset
from bvit.evaluation.baseline import histogram_nearest_neighbour
from bvit.evaluation.evaluator import Evaluator
from bvit.image import conditions
from bvit.image.color import MAX_STRENGTHS
from bvit.models import pretrained
from bvit.models.vit import VisionTransformer
from bvit.tokens import Keep, Policy, parse
from bvit.training.optimizer import make_optimizer, make_schedule
from bvit.training.profile import check_steps
from bvit.training.step import Hyperparameters

# Training crops that the nearest neighbour chooses from: a quarter, which takes seconds to read.
BASELINE_IMAGES = 4096
# What models may compute in.
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The pieces of a run, checked against each other.

    Attributes:
      config: where they come from.
      mesh: the devices.
      train_source: pictures to train on.
      test_source: pictures to evaluate on.
      model: the classifier.
      recipes: how a batch may be treated; each step draws one of them.
      initial: variables to start from, or None to draw them.
      schedule: step → learning rate.
      optimizer: of the parameters.
      total_steps: length of the training.
      conditions: what evaluation does to the pictures.
      policies: what evaluation does with blurry patches.
    """

    config: ConfigDict
    mesh: Mesh
    train_source: data.Source
    test_source: data.Source
    model: nn.Module
    recipes: tuple[Hyperparameters, ...]
    initial: PyTree | None
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    total_steps: int
    conditions: tuple[str, ...]
    policies: tuple[Policy, ...]

    @property
    def num_classes(self) -> int:
        """Classes of the data set."""
        return self.train_source.num_classes


def prepare(config: ConfigDict) -> Experiment:
    """Builds the pieces of a run from its config; compiles nothing and reads no picture.

    Raises:
      ValueError: for settings that are wrong or do not fit together; it says which, and the fix.
    """
    c = config
    _check_values(c)
    mesh = sharding.make_mesh(data=c.mesh.data, fsdp=c.mesh.fsdp, tensor=c.mesh.tensor)
    sharding.check_batch(
        c.train.batch_size, mesh, name="train.batch_size", accumulate=c.train.accumulate
    )
    sharding.check_batch(c.eval.batch_size, mesh, name="eval.batch_size")
    if c.train.mixup and c.train.batch_size // sharding.batch_shares(mesh) % 2:
        raise ValueError(
            "train.mixup mixes pictures in pairs: each device needs an even share of "
            f"train.batch_size={c.train.batch_size}, got {sharding.batch_shares(mesh)} devices."
        )
    train_source, test_source = _sources(c)
    model = build_model(c, train_source.num_classes)
    names = conditions.expand(config_lib.words(c.eval.conditions))
    for name in (c.train.condition, *names):
        conditions.parts(name)
    train_policies = tuple(
        build_policy(c, model, text) for text in config_lib.words(c.tokens.policy)
    )
    policies = tuple(build_policy(c, model, text) for text in config_lib.words(c.eval.policies))
    _check_full_pass(c, model, train_policies)
    total_steps = _total_steps(c, len(train_source))
    check_steps(c.profile.steps, total_steps)
    schedule = make_schedule(
        c.optimizer.schedule,
        learning_rate=c.optimizer.learning_rate,
        total_steps=total_steps,
        warmup=c.optimizer.warmup,
        boundaries=tuple(c.optimizer.boundaries),
        decay=c.optimizer.decay,
    )
    return Experiment(
        config=c,
        mesh=mesh,
        train_source=train_source,
        test_source=test_source,
        model=model,
        recipes=tuple(_recipe(c, policy) for policy in train_policies),
        initial=build_initial(c, train_source.class_names),
        schedule=schedule,
        optimizer=build_optimizer(c, schedule),
        total_steps=total_steps,
        conditions=names,
        policies=policies,
    )


def _check_values(c: ConfigDict) -> None:
    """Looks at what is only used once the step is compiled, so that a slip costs no minutes."""
    low, high = c.data.crop_scale
    jitter = c.train.color_jitter
    rules = {
        "log.every_steps": (c.log.every_steps > 0, "at least 1"),
        "checkpoint.every_steps": (c.checkpoint.every_steps > 0, "at least 1"),
        "checkpoint.keep": (c.checkpoint.keep > 0, "at least 1"),
        "eval.every_steps": (c.eval.every_steps >= 0, "0 (only at the end) or more"),
        "eval.conditions": (bool(config_lib.words(c.eval.conditions)), "at least one, as sharp"),
        "eval.policies": (bool(config_lib.words(c.eval.policies)), "at least one, as keep"),
        "tokens.policy": (bool(config_lib.words(c.tokens.policy)), "at least one, as keep"),
        "train.color_jitter": (
            len(jitter) in (0, len(MAX_STRENGTHS))
            and all(
                0 <= x <= most for x, most in zip(jitter, MAX_STRENGTHS.values(), strict=False)
            ),
            "() or strengths of brightness, contrast, saturation (up to 1) and hue (up to 0.5), as "
            "(0.4, 0.4, 0.4, 0.1)",
        ),
        "train.distill": (c.train.distill >= 0, "a weight, 0 (off) or more"),
        "train.distill_temperature": (c.train.distill_temperature > 0, "above 0"),
        "seed": (c.seed >= 0, "0 or more"),
        "data.crop_scale": (0 < low <= high <= 1, "a range within (0, 1], as (0.08, 1.0)"),
        "data.on_error": (c.data.on_error in ("raise", "skip"), "raise or skip"),
        "data.resize": (
            c.data.resize == 0 or c.data.resize >= c.data.image_size,
            f"0 or at least data.image_size={c.data.image_size}",
        ),
        "model.dtype": (c.model.dtype in DTYPES, f"one of {', '.join(DTYPES)}"),
    }
    settings = config_lib.flatten(config_lib.to_dict(c))
    for key, (holds, wanted) in rules.items():
        if not holds:
            raise ValueError(f"{key} must be {wanted}: got {settings[key]!r}.")


def _check_full_pass(c: ConfigDict, model: nn.Module, policies: tuple[Policy, ...]) -> None:
    setting = "train.distill" if c.train.distill else "train.sandwich"
    if not (c.train.distill or c.train.sandwich):
        return
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"{setting} runs a ViT with every token besides one with fewer, and {c.model.name} has "
            f"none: set it to {'0' if c.train.distill else 'False'}, or train a ViT."
        )
    if all(policy == Keep() for policy in policies):
        raise ValueError(
            f"{setting} needs a policy to train besides keep: got tokens.policy="
            f"{c.tokens.policy}; add one, as keep,merge:0.5."
        )


def _sources(c: ConfigDict) -> tuple[data.Source, data.Source]:
    options = {
        "dir": Path(c.data.dir) if c.data.dir else None,
        "seed": c.seed,
        "image_size": c.data.image_size,
    }
    return (
        data.open_source(c.data.name, split="train", split_name=c.data.train_split, **options),
        data.open_source(c.data.name, split="test", split_name=c.data.test_split, **options),
    )


def _model_options(c: ConfigDict) -> dict[str, Any]:
    options = {k: v for k, v in c.model.items() if k != "name" and v is not None}
    if c.model.name.startswith("vit"):
        options["image_size"] = c.data.image_size
    return options


def build_model(c: ConfigDict, num_classes: int) -> nn.Module:
    """The classifier that a config names."""
    return models.create(c.model.name, num_classes=num_classes, **_model_options(c))


def build_initial(c: ConfigDict, class_names: Sequence[str]) -> PyTree | None:
    """The weights that a config starts from, fitted to its model; None without them.

    Raises:
      ValueError: they can't be read or do not fit, or are a run's whose head is for other classes.
    """
    if not c.init_from:
        return None
    options = {
        "replace_head": not c.init_head,
        "seed": c.seed,
        "num_classes": len(class_names),
        **_model_options(c),
    }
    folder = Path(c.init_from).expanduser()
    if folder.is_dir():
        return pretrained.convert(c.model.name, _weights_of_run(folder, c, class_names), **options)
    return pretrained.load(c.model.name, c.init_from, **options)


def _weights_of_run(
    folder: Path, c: ConfigDict, class_names: Sequence[str]
) -> dict[str, np.ndarray]:
    from bvit import runs  # here, since it builds the models of runs by this module

    run = runs.load(folder)
    if c.init_head and run.class_names != tuple(class_names):
        raise ValueError(
            f"init_head takes the head of {folder} for the same classes in the same order: it has "
            f"{len(run.class_names)} ({', '.join(run.class_names[:3])}, …), the data "
            f"{len(class_names)} ({', '.join(class_names[:3])}, …); set init_head=False for a new "
            "head, or choose the data that it was trained on."
        )
    return traverse_util.flatten_dict(jax.device_get(run.variables), sep="/")


def build_optimizer(c: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer that a config names; the form of its state does not depend on the schedule."""
    return make_optimizer(
        c.optimizer.name,
        schedule,
        weight_decay=c.optimizer.weight_decay,
        momentum=c.optimizer.momentum,
        b2=c.optimizer.b2,
        clip_norm=c.optimizer.clip_norm,
        decay_all=c.optimizer.decay_all,
    )


def build_policy(c: ConfigDict, model: nn.Module, text: str) -> Policy:
    """Reads a policy as people type it ("merge:31"), with a config's score, threshold and budget.

    Raises:
      ValueError: no such policy, or a model that has no tokens to leave out.
    """
    policy = parse(
        text, score=c.tokens.score, threshold=c.tokens.threshold, zero_at=c.tokens.zero_at
    )
    check(model, policy)
    return policy


def _recipe(c: ConfigDict, policy: Policy) -> Hyperparameters:
    return Hyperparameters(
        condition=c.train.condition,
        policy=policy,
        mean=tuple(c.data.mean),
        std=tuple(c.data.std),
        label_smoothing=c.train.label_smoothing,
        color_jitter=tuple(c.train.color_jitter),
        mixup=c.train.mixup,
        ema_decay=c.train.ema_decay,
        accumulate=c.train.accumulate,
        skip_nonfinite=c.train.skip_nonfinite > 0,
        distill=c.train.distill,
        distill_temperature=c.train.distill_temperature,
        sandwich=c.train.sandwich,
        seed=c.seed,
    )


def _total_steps(c: ConfigDict, num_images: int) -> int:
    if c.train.steps is not None:
        steps = c.train.steps
    elif c.train.epochs is not None:
        steps = math.ceil(c.train.epochs * num_images / c.train.batch_size)
    else:
        raise ValueError("set train.steps or train.epochs: both are None.")
    if steps < 0:
        raise ValueError(f"train.steps must be positive, or 0 to evaluate only: got {steps}.")
    if steps == 0 and not c.init_from:
        raise ValueError("train.steps=0 evaluates only: set init_from to the weights to evaluate.")
    return steps


def num_parameters(params: PyTree) -> int:
    """How many numbers a tree of parameters (or their shapes) holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def train_batches(experiment: Experiment, start_step: int) -> data.Batches:
    """This process's share of the batches of each step, from `start_step` (counted from 0) on."""
    c = experiment.config
    return data.train_batches(
        experiment.train_source,
        batch_size=c.train.batch_size,
        image_size=c.data.image_size,
        seed=c.seed,
        start_step=start_step,
        num_steps=experiment.total_steps - start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        scale=tuple(c.data.crop_scale),
        flip=c.data.flip,
        num_workers=c.data.num_workers,
        on_error=c.data.on_error,
    )


def test_batches(experiment: Experiment) -> data.Batches:
    """This process's share of the test set, in batches padded to one size."""
    c = experiment.config
    return data.eval_batches(
        experiment.test_source,
        batch_size=c.eval.batch_size,
        image_size=c.data.image_size,
        resize=c.data.resize or None,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=c.data.num_workers,
        on_error=c.data.on_error,
    )


def sample_batch(experiment: Experiment, count: int) -> dict[str, np.ndarray]:
    """A few test pictures spread evenly over the set, and so over its classes."""
    c, source = experiment.config, experiment.test_source
    places = np.linspace(0, len(source) - 1, min(count, len(source))).astype(np.int32)
    batches = data.eval_batches(
        Subset(source, places),
        batch_size=len(places),
        image_size=c.data.image_size,
        resize=c.data.resize or None,
        on_error=c.data.on_error,
    )
    with batches:
        return next(batches) | {"index": places}


def baselines(experiment: Experiment) -> dict[str, float]:
    """What a nearest neighbour by histogram gets: accuracy that needs no structure.

    Only for the embedded photographs, which were retouched so that it should fail; larger sets
    would have to be read whole.
    """
    if experiment.config.data.name != "photos":
        return {}
    source = experiment.train_source
    places = np.linspace(0, len(source) - 1, min(len(source), BASELINE_IMAGES)).astype(int)
    train, train_labels = _read_all(experiment, Subset(source, places))
    test, test_labels = _read_all(experiment, experiment.test_source)
    predicted = histogram_nearest_neighbour(train, train_labels, test)
    name = f"nearest neighbour by histogram among {len(train)} training crops"
    return {name: float(np.mean(predicted == test_labels))}


def _read_all(experiment: Experiment, source: data.Source) -> tuple[np.ndarray, np.ndarray]:
    c = experiment.config
    options = {"image_size": c.data.image_size, "resize": c.data.resize or None}
    with data.eval_batches(source, batch_size=c.eval.batch_size, **options) as batches:
        kept = [(batch["image"][batch["mask"]], batch["label"][batch["mask"]]) for batch in batches]
    images, labels = zip(*kept, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def make_evaluator(experiment: Experiment) -> Evaluator:
    """The run's evaluator, over its test set."""
    c = experiment.config
    return Evaluator(
        experiment.model,
        lambda: test_batches(experiment),
        conditions=experiment.conditions,
        policies=experiment.policies,
        num_images=len(experiment.test_source),
        image_size=c.data.image_size,
        mean=experiment.recipes[0].mean,
        std=experiment.recipes[0].std,
        seed=c.seed,
        mesh=experiment.mesh,
    )
