"""Validation while training: the best checkpoint, early stopping, and going on."""

import math

import jax
import numpy as np
import pytest
from trained import CLASSES, write_picture

from bvit import config as config_lib
from bvit.checkpoint import Checkpoints
from bvit.evaluation.evaluator import EvalResult
from bvit.experiment import goes_on, prepare
from bvit.interrupt import Interrupted, SignalWatch
from bvit.run import Run
from bvit.tokens import parse
from bvit.training import loop
from bvit.training.metrics import MetricsWriter
from bvit.training.state import TrainState
from bvit.training.validation import Validation
from configs.vit_mask import get_config

KEEP, MERGE = parse("keep"), parse("merge:7")


def state(step):
    params = {"kernel": jax.numpy.full(3, float(step))}
    return TrainState(jax.numpy.asarray(step), params, {}, (), None)


def validate(folder, found, patience=0, before=(), first=1):
    """Validates (right of 4, loss) of each step, until it is over; returns what was made."""
    results = iter(found)

    def evaluator(variables):
        right, loss = next(results)
        label = np.zeros(4, np.int32)
        rank = (np.arange(4) >= right).astype(np.int32)
        return [
            EvalResult("sharp", policy, np.arange(4), rank, label, rank, label, np.full(4, loss))
            for policy in (KEEP, MERGE)
        ]

    folder.mkdir(exist_ok=True)
    writer = MetricsWriter(folder, start_step=first - 1)
    checkpoints = Checkpoints(folder / "best", keep=1)
    validation = Validation(evaluator, checkpoints, writer, before=before, patience=patience)
    for step in range(first, first + len(found)):
        if not validation.is_over:
            validation(step, state(step))
    best = validation.best(state(99))
    checkpoints.close()
    writer.close()
    return validation, best


@pytest.mark.parametrize(
    "found, best",
    [
        ([(1, 2.0), (3, 2.5), (2, 1.0)], 2),
        ([(3, 2.0), (3, 1.0), (3, 1.0)], 2),
        ([(3, math.nan), (3, 1.0), (2, math.nan)], 2),
        ([(0, math.nan)], 1),
    ],
)
def test_the_best_is_the_most_accurate_then_the_one_of_least_loss(tmp_path, found, best):
    _, kept = validate(tmp_path, found)
    assert int(kept.step) == best
    np.testing.assert_array_equal(kept.params["kernel"], np.full(3, best))


def test_training_stops_after_so_many_validations_without_a_better_one(tmp_path, capsys):
    found = [(2, 1.0), (1, 1.0), (3, 1.0), (1, 1.0), (2, 1.0), (4, 1.0)]
    validation, best = validate(tmp_path, found, patience=2)
    assert validation.steps == [1, 2, 3, 4, 5] and int(best.step) == 3
    assert "Step 3: validation loss 1.0000, accuracy 75.00 %, the best so far" in (
        capsys.readouterr().out
    )


def test_an_interrupted_validation_goes_on_from_its_log(tmp_path):
    found = [(2, 1.0), (3, math.nan), (1, 1.0), (3, 2.0), (3, 2.0)]
    whole, best = validate(tmp_path / "whole", found, patience=1)
    validate(tmp_path / "parts", found[:2])
    before = Run(tmp_path / "parts").metrics
    assert before[1]["valid_loss"] is None and before[0]["valid_accuracy/merge:7"] == 0.5
    parts, same = validate(tmp_path / "parts", found[2:], patience=1, before=before, first=3)
    assert parts.steps == whole.steps == [1, 2, 3] and int(same.step) == int(best.step) == 2


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains on a few images, as `bvit.main` does; returns the run."""
    top = tmp_path_factory.mktemp("validated")
    for split, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(CLASSES):
            for i in range(count):
                write_picture(top / "data" / split / name / f"{i}.png", seed=10 * label + i)

    def train(name, **settings):
        config = get_config("folder")
        with config.unlocked():
            config.data.dir, config.data.image_size = str(top / "data"), 32
            config.model.patch_size, config.model.width, config.model.depth = 8, 32, 1
            config.model.num_heads = 2
            config.train.condition, config.train.batch_size = "sharp+blur", 8
            config.tokens.policy = config.eval.policies = "keep"
            config.eval.conditions, config.eval.batch_size = "sharp", 8
            config.optimizer.schedule, config.optimizer.warmup = "constant", 0.0
            config.data.valid, config.eval.every_steps = "0.3", 2
            config.log.every_steps = 1
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in settings.items()})
        experiment = prepare(config)
        run = Run.begin(
            top / name,
            config_lib.to_dict(config),
            goes_on=lambda saved: goes_on(experiment, saved),
        )
        try:
            loop.train_and_evaluate(experiment, run, SignalWatch())
        finally:
            run.close()
        return Run(top / name)

    return train


def lines(run):
    """The losses of a run by step: of training, and of validation."""
    keys = ("loss", "valid_loss", "valid_accuracy")
    return [{k: line[k] for k in ("step", *keys) if k in line} for line in run.metrics]


@pytest.fixture(scope="module")
def whole(train):
    """A run of five steps, without any stop."""
    return train("whole", train__steps=5)


def test_a_run_validates_and_is_its_best_checkpoint(whole):
    run = whole
    accuracies = {m["step"]: m["valid_accuracy"] for m in run.metrics if "valid_accuracy" in m}
    assert list(accuracies) == [2, 4, 5]
    assert run.results["step"] == run.load().step
    assert accuracies[run.step] == max(accuracies.values())
    assert Run(run.path).load(checkpoint="newest").step == 5
    assert not (run.path / "evaluations.jsonl").read_text().count("\n") > 1  # the end alone


def test_a_run_that_is_stopped_or_made_longer_ends_as_one_that_was_not(train, whole, monkeypatch):
    train("parts", train__steps=3)

    def stop(*arguments):
        raise Interrupted(15)

    with monkeypatch.context() as patched:
        patched.setattr(Validation, "__call__", stop)
        with pytest.raises(Interrupted):
            train("parts", train__steps=5)
    parts = train("parts", train__steps=5)
    only_short = {"step": 3, **{k: v for k, v in lines(parts)[4].items() if k.startswith("valid")}}
    assert [line for line in lines(parts) if line != only_short] == lines(whole)
    assert parts.results["step"] in (3, whole.results["step"])
    with pytest.raises(ValueError, match="train.steps was 5, now 4.*A run can go on for longer"):
        train("parts", train__steps=4)


@pytest.mark.parametrize(
    "name, shorter, longer, allowed",
    [
        ("constant", (3, 0.0), (5, 0.0), True),
        ("constant", (4, 0.5), (8, 0.25), True),
        ("constant", (4, 0.5), (8, 0.5), False),
        ("constant", (5, 0.0), (3, 0.0), False),
        ("cosine", (3, 0.0), (5, 0.0), False),
    ],
)
def test_a_run_goes_on_where_its_learning_rates_stay_the_same(name, shorter, longer, allowed):
    old, new = get_config(), get_config()
    for config, (steps, warmup) in ((old, shorter), (new, longer)):
        config.optimizer.schedule = name
        config.train.steps, config.optimizer.warmup = steps, warmup
    assert goes_on(prepare(new), old) is allowed


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"data__valid": "val"}, "data.valid=val holds images that the run tests on"),
        ({"data__valid": "train"}, "data.valid=train holds images that the run trains on"),
        ({"data__valid": "held"}, "no folder 'held'"),
        ({"eval__every_steps": 0}, "set that above 0"),
        ({"data__valid": "", "train__patience": 1}, "set data.valid too"),
    ],
)
def test_what_does_not_fit_together_is_an_error(train, settings, message):
    with pytest.raises(ValueError, match=message):
        train("never", train__steps=2, **settings)
