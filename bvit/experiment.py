"""From a config to the checked pieces of a training and its evaluation."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from bvit import config as config_lib
from bvit import data, rules, sharding
from bvit.data.relabelled import Relabelled
from bvit.data.subset import Subset, hold_out
from bvit.evaluation.baseline import histogram_nearest_neighbour
from bvit.evaluation.evaluator import Evaluator
from bvit.image import conditions
from bvit.models.vit import VisionTransformer
from bvit.optimizer import make_optimizer, make_schedule
from bvit.run import initial_variables
from bvit.tokens import Keep, Policy
from bvit.trained import build_model, build_policy

# Training crops that the nearest neighbour chooses from: a quarter, which takes seconds to read.
BASELINE_IMAGES = 4096

# Images to train on, to validate on and to test on; None where that is not done.
Sources = tuple[data.Source | None, data.Source | None, data.Source]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The pieces of a run, checked against each other.

    Attributes:
      config: the settings.
      mesh: the devices.
      train_source: images to train on; None where nothing is trained.
      valid_source: images to validate on while training; None for no validation.
      test_source: images to evaluate on.
      model: the classifier.
      train_policies: the token policies of training; each step draws one of them.
      initial: variables to start from, on the host; None to draw them.
      schedule: step → learning rate.
      optimizer: of the parameters; one without state where nothing is trained.
      total_steps: length of the training; 0 evaluates only.
      conditions: what evaluation does to the images.
      policies: the token policies of evaluation.
    """

    config: ConfigDict
    mesh: Mesh
    train_source: data.Source | None
    valid_source: data.Source | None
    test_source: data.Source
    model: nn.Module
    train_policies: tuple[Policy, ...]
    initial: PyTree | None
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    total_steps: int
    conditions: tuple[str, ...]
    policies: tuple[Policy, ...]

    @property
    def num_classes(self) -> int:
        """Classes of the data set."""
        return self.test_source.num_classes


def prepare(config: ConfigDict, *, classes: Sequence[str] = ()) -> Experiment:
    """Builds the pieces of a run from its config; compiles nothing and reads no image.

    Args:
      config: the settings.
      classes: of a trained model, of which the test set may have some; () for those of the data.

    Raises:
      ValueError: settings are wrong or do not fit together; it names them, and the fix.
    """

    def open_sources(c: ConfigDict) -> Sources:
        train, valid, test = _sources(c)
        if classes and test.class_names != tuple(classes):
            test = Relabelled(test, classes)
        return train, valid, test

    experiment = assemble(config, open_sources)
    initial = initial_variables(config, experiment.test_source.class_names)
    return dataclasses.replace(experiment, initial=initial)


def assemble(
    config: ConfigDict,
    open_sources: Callable[[ConfigDict], Sources],
    devices: list | None = None,
) -> Experiment:
    """Builds the pieces of a run as `prepare` does, but not the weights to start from.

    Args:
      config: the settings.
      open_sources: gives the images to train on, to validate on and to test on.
      devices: of the mesh; by default all that there are.

    Raises:
      ValueError: as `prepare`.
    """
    c = config
    rules.check(config_lib.flatten(config_lib.to_dict(c)))
    mesh = sharding.make_mesh(
        data=c.mesh.data, fsdp=c.mesh.fsdp, tensor=c.mesh.tensor, devices=devices
    )
    _check_batches(c, mesh)
    train_source, valid_source, test_source = open_sources(c)
    model = build_model(c, test_source.num_classes)
    names = conditions.expand(config_lib.words(c.eval.conditions))
    for name in (c.train.condition, *names):
        conditions.parts(name)
    train_policies = tuple(
        build_policy(c, model, text) for text in config_lib.words(c.tokens.policy)
    )
    policies = tuple(build_policy(c, model, text) for text in config_lib.words(c.eval.policies))
    _check_full_pass(c, model, train_policies)
    total_steps = _total_steps(c, len(train_source) if train_source else 0)
    _check_profile(c.profile.steps, total_steps)
    schedule, optimizer = _optimizer(c, total_steps)
    return Experiment(
        config=c,
        mesh=mesh,
        train_source=train_source,
        valid_source=valid_source,
        test_source=test_source,
        model=model,
        train_policies=train_policies,
        initial=None,
        schedule=schedule,
        optimizer=optimizer,
        total_steps=total_steps,
        conditions=names,
        policies=policies,
    )


def _check_batches(c: ConfigDict, mesh: Mesh) -> None:
    sharding.check_batch(c.eval.batch_size, mesh, name="eval.batch_size")
    if c.train.steps == 0:
        return
    size, shares = c.train.batch_size, sharding.batch_shares(mesh)
    sharding.check_batch(size, mesh, name="train.batch_size", accumulate=c.train.accumulate)
    if (c.train.mixup or c.train.cutmix) and size // shares % 2:
        raise ValueError(
            f"{'train.mixup' if c.train.mixup else 'train.cutmix'} mixes images in pairs: each "
            f"device needs an even share of train.batch_size={size}, got {shares} devices."
        )


def _check_full_pass(c: ConfigDict, model: nn.Module, policies: tuple[Policy, ...]) -> None:
    setting = "train.distill" if c.train.distill else "train.sandwich"
    if not (c.train.distill or c.train.sandwich):
        return
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"{setting} trains with all tokens of a ViT and with fewer, and {c.model.name} has "
            f"none: set it to {'0' if c.train.distill else 'False'}, or train a ViT."
        )
    if all(policy == Keep() for policy in policies):
        raise ValueError(
            f"{setting} needs a policy to train besides keep: got tokens.policy="
            f"{c.tokens.policy}; add one, as keep,merge:0.5."
        )


def _check_profile(steps: Sequence[int], total_steps: int) -> None:
    if steps and steps[1] > total_steps:
        raise ValueError(
            f"profile.steps must lie within the {total_steps} steps of the training: got "
            f"{tuple(steps)!r}."
        )


def _open(c: ConfigDict, split: str, name: str) -> data.Source:
    return data.open_source(
        c.data.name,
        split=split,
        split_name=name,
        dir=Path(c.data.dir) if c.data.dir else None,
        seed=c.seed,
        image_size=c.data.image_size,
        exclude=c.data.exclude,
    )


def open_test_source(c: ConfigDict) -> data.Source:
    """The images that a config tests on."""
    return _open(c, "test", c.data.test_split)


def _sources(c: ConfigDict) -> Sources:
    """Images to train on, to validate on and to test on; None where that is not done."""
    test = open_test_source(c)
    if c.train.steps == 0:
        return None, None, test
    train = _open(c, "train", c.data.train_split)
    if not c.data.valid:
        if c.train.patience:
            raise ValueError("train.patience counts validations: set data.valid too, as 0.1.")
        return train, None, test
    if not c.eval.every_steps:
        raise ValueError("data.valid is validated on every eval.every_steps: set that above 0.")
    if share := config_lib.valid_share(c.data.valid):
        return *hold_out(train, share), test
    valid = _open(c, "test", c.data.valid)
    for name, other in (("train", train), ("test", test)):
        if data.have_common_records(valid, other):
            raise ValueError(
                f"data.valid={c.data.valid} holds images that the run {name}s on: choose another "
                f"data.valid, or data.{name}_split."
            )
    if valid.class_names != test.class_names:
        raise ValueError(f"data.valid={c.data.valid} must have the classes of the test images.")
    return train, valid, test


def _total_steps(c: ConfigDict, num_images: int) -> int:
    if c.train.steps is not None:
        steps = c.train.steps
    elif c.train.epochs is not None:
        steps = math.ceil(c.train.epochs * num_images / c.train.batch_size)
    else:
        raise ValueError("set train.steps or train.epochs: both are None.")
    if steps == 0 and not c.init_from:
        raise ValueError("train.steps=0 evaluates only: set init_from to the weights to evaluate.")
    return steps


def _optimizer(
    c: ConfigDict, total_steps: int
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    o = c.optimizer
    schedule = make_schedule(
        o.schedule,
        learning_rate=o.learning_rate,
        total_steps=total_steps,
        warmup=o.warmup,
        boundaries=tuple(o.boundaries),
        decay=o.decay,
    )
    optimizer = make_optimizer(
        o.name,
        schedule,
        weight_decay=o.weight_decay,
        momentum=o.momentum,
        b2=o.b2,
        clip_norm=o.clip_norm,
        decay_all=o.decay_all,
    )
    return schedule, optimizer if total_steps else optax.identity()


def goes_on(experiment: Experiment, shorter: ConfigDict) -> bool:
    """Whether a training may continue a shorter one: no learning rate of its steps changes.

    Args:
      experiment: the longer training.
      shorter: the config of the other one, which differs in `bvit.config.LENGTH` alone.
    """
    steps = _total_steps(shorter, len(experiment.train_source or ()))
    schedule, _ = _optimizer(shorter, steps)
    counts = np.arange(steps)
    return 0 < steps < experiment.total_steps and np.array_equal(
        *(np.broadcast_to(one(counts), steps) for one in (schedule, experiment.schedule))
    )


def train_batches(experiment: Experiment, start_step: int) -> data.Batches:
    """This process's rows of the batch of each step, from `start_step` (counted from 0) on."""
    c = experiment.config
    return data.train_batches(
        experiment.train_source,
        batch_size=c.train.batch_size,
        image_size=c.data.image_size,
        seed=c.seed,
        start_step=start_step,
        num_steps=experiment.total_steps - start_step,
        rows=sharding.local_rows(c.train.batch_size, experiment.mesh),
        scale=tuple(c.data.crop_scale),
        flip=c.data.flip,
        num_workers=c.data.num_workers,
        on_error=c.data.on_error,
    )


def test_batches(experiment: Experiment, source: data.Source) -> data.Batches:
    """This process's rows of a test or validation set, in batches padded to one size."""
    rows = sharding.local_rows(experiment.config.eval.batch_size, experiment.mesh)
    return eval_batches(experiment.config, source, rows=rows)


def eval_batches(c: ConfigDict, source: data.Source, **options: Any) -> data.Batches:
    """Images prepared as a config tests them; the options are those of `bvit.data.eval_batches`."""
    defaults = {"batch_size": c.eval.batch_size, "num_workers": c.data.num_workers}
    return data.eval_batches(
        source,
        image_size=c.data.image_size,
        resize=c.data.resize or None,
        interpolation=c.data.interpolation,
        on_error=c.data.on_error,
        **defaults | options,
    )


def sample_batch(experiment: Experiment, count: int) -> dict[str, np.ndarray]:
    """A few test images spread evenly over the set, and so over its classes."""
    source = experiment.test_source
    places = np.linspace(0, len(source) - 1, min(count, len(source))).astype(np.int32)
    samples = Subset(source, places)
    with eval_batches(experiment.config, samples, batch_size=len(places), num_workers=0) as batches:
        return next(batches) | {"index": places}


def baselines(experiment: Experiment) -> dict[str, float]:
    """The accuracy of a nearest neighbour by histogram, which sees no structure.

    Only for the embedded photographs, which were retouched so that it should fail; it reads the
    whole set.
    """
    source = experiment.train_source
    if experiment.config.data.name != "photos" or source is None:
        return {}
    places = np.linspace(0, len(source) - 1, min(len(source), BASELINE_IMAGES)).astype(int)
    train, train_labels = _read_all(experiment, Subset(source, places))
    test, test_labels = _read_all(experiment, experiment.test_source)
    predicted = histogram_nearest_neighbour(train, train_labels, test)
    name = f"nearest neighbour by histogram among {len(train)} training crops"
    return {name: float(np.mean(predicted == test_labels))}


def _read_all(experiment: Experiment, source: data.Source) -> tuple[np.ndarray, np.ndarray]:
    with eval_batches(experiment.config, source, num_workers=0) as batches:
        kept = [(batch["image"][batch["mask"]], batch["label"][batch["mask"]]) for batch in batches]
    images, labels = zip(*kept, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def make_evaluator(experiment: Experiment) -> Evaluator:
    """The run's evaluator, over its test set."""
    return _evaluator(
        experiment, experiment.test_source, experiment.conditions, experiment.policies
    )


def make_validator(experiment: Experiment) -> Evaluator | None:
    """An evaluator of the validation set, on what the run trains on; None without such a set."""
    if experiment.valid_source is None:
        return None
    conditions = (experiment.config.train.condition,)
    return _evaluator(experiment, experiment.valid_source, conditions, experiment.train_policies)


def _evaluator(
    experiment: Experiment,
    source: data.Source,
    conditions: Sequence[str],
    policies: Sequence[Policy],
) -> Evaluator:
    c = experiment.config
    return Evaluator(
        experiment.model,
        lambda: test_batches(experiment, source),
        conditions=conditions,
        policies=policies,
        num_images=len(source),
        image_size=c.data.image_size,
        mean=tuple(c.data.mean),
        std=tuple(c.data.std),
        seed=c.seed,
        mesh=experiment.mesh,
    )
