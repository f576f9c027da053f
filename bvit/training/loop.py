"""The training and evaluation of one run, from its config to its results.

Read `step.py` next: what one update does. What a config means is in `setup.py`.
"""

import contextlib
import functools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from bvit import distributed, sharding
from bvit import experiment as setup
from bvit.checkpoint import Checkpoints
from bvit.evaluation import rows as report
from bvit.evaluation.evaluator import Evaluator, put_batch
from bvit.interrupt import Interrupted, SignalWatch
from bvit.run_directory import RunDirectory, write_json
from bvit.training import console, results
from bvit.training.feed import Feed
from bvit.training.meter import Meter
from bvit.training.metrics import MetricsWriter
from bvit.training.profile import StepTrace
from bvit.training.state import TrainState, create_state
from bvit.training.step import Hyperparameters, Metrics, make_train_step


def train_and_evaluate(
    experiment: setup.Experiment, run: RunDirectory, signals: SignalWatch
) -> dict[str, Any]:
    """Trains, evaluates and reports one run; picks up where an interrupted one stopped.

    Args:
      experiment: of `setup.prepare`.
      run: the run directory, new or of the same config.
      signals: what may ask the run to stop.

    Returns:
      What `results.json` holds.

    Raises:
      CheckpointError: the run's checkpoints are of another model, or all damaged.
      CheckpointWriteError: the state could not be saved; the checkpoints before it are kept.
      NonFiniteLossError: training diverged; the last good checkpoint is kept.
      UnreadableImageError, DataWorkerError: the data can't be had.
      Interrupted: a signal came; while training, the state is saved first.
    """
    if run.results.exists():
        found = json.loads(run.results.read_text())
        console.say(f"This run is finished (step {found['step']}).")
    else:
        found = _run(experiment, run, signals)
    console.say(console.summary(found, run))
    return found


def _run(experiment: setup.Experiment, run: RunDirectory, signals: SignalWatch) -> dict[str, Any]:
    keep = experiment.config.checkpoint.keep
    with contextlib.closing(Checkpoints(run.checkpoints, keep=keep)) as checkpoints:
        state = _restore_or_create(experiment, checkpoints)
        step = int(state.step)
        console.say(console.introduction(experiment, state))
        is_main = distributed.is_main()
        writer = MetricsWriter(run.path if is_main else None, start_step=step)
        evaluator = setup.make_evaluator(experiment)
        trace = StepTrace(experiment.config.profile.steps, run.path / "tensorboard")
        with contextlib.closing(writer), contextlib.closing(trace):
            if is_main:
                write_json(run.path / "classes.json", list(experiment.train_source.class_names))
            state = train(experiment, state, checkpoints, writer, trace, evaluator, signals)
            results.show_samples(experiment, state, writer, run.figures)
            outcomes = evaluator(state.eval_variables)
            found = results.gather(experiment, state, evaluator, outcomes)
            if is_main:
                results.write(found, outcomes, run, writer)
    return found


def _restore_or_create(experiment: setup.Experiment, checkpoints: Checkpoints) -> TrainState:
    c = experiment.config
    create = functools.partial(
        create_state,
        model=experiment.model,
        optimizer=experiment.optimizer,
        image_size=c.data.image_size,
        ema=c.train.ema_decay > 0,
    )
    key = jax.random.key(c.seed)
    shapes = jax.eval_shape(create, key)
    shardings = sharding.state_shardings(shapes, experiment.mesh)
    like = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )
    restored = checkpoints.restore_newest(like)
    if restored is not None:
        step, state = restored
        console.say(f"Going on from the checkpoint of step {step}.")
        return state
    return jax.jit(create, out_shardings=shardings)(key, experiment.initial)


def train(
    experiment: setup.Experiment,
    state: TrainState,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    trace: StepTrace,
    evaluator: Evaluator,
    signals: SignalWatch,
) -> TrainState:
    """Updates the state until the last step of the run, saving and logging on the way.

    The metrics of a step are read while the next one runs, so the device never waits for the host;
    but no checkpoint is written before the loss it rests on has been seen to be finite. With the
    metrics comes what signal any process has received, so that all of them stop at the same step.
    A checkpoint precedes each evaluation, which may take long and can then be broken off at once.
    """
    c, total, start = experiment.config, experiment.total_steps, int(state.step)
    if start >= total:
        return state
    updates = [_compile_step(experiment, recipe, state) for recipe in experiment.recipes]
    meter = Meter(
        writer,
        experiment.schedule,
        start_step=start,
        total_steps=total,
        batch_size=c.train.batch_size,
        log_every=c.log.every_steps,
        skip_nonfinite=c.train.skip_nonfinite,
    )
    feed = Feed(functools.partial(setup.train_batches, experiment), start)
    pending = None
    with contextlib.closing(feed), contextlib.closing(meter), signals.held():
        for step in range(start + 1, total + 1):
            batch = put_batch(meter.wait_for(feed), experiment.mesh)
            update = updates[_draw(c.seed, step, len(updates))]
            state, metrics = trace.run(step, update, state, batch)
            metrics["signal"] = distributed.greatest(signals.received, experiment.mesh)
            stop = meter.read(*pending) if pending else 0
            pending = (step, metrics)
            evaluates = c.eval.every_steps and step % c.eval.every_steps == 0 and step < total
            if stop or evaluates or step == total or step % c.checkpoint.every_steps == 0:
                stop = meter.read(*pending) or stop
                pending = None
                checkpoints.save(step, state)
            if stop:
                checkpoints.wait()
                raise Interrupted(stop, step)
            if evaluates:
                with signals.released():
                    outcomes = evaluator(state.eval_variables)
                rows = report.make_rows(outcomes, evaluator.costs)
                writer.accuracies(step, results.curves(rows))
                meter.restart_clock()
    return state


def _draw(seed: int, step: int, choices: int) -> int:
    """Which recipe a step uses: drawn on the host, so that each is one compiled program."""
    return int(np.random.default_rng((seed, step)).integers(choices))


def _compile_step(
    experiment: setup.Experiment, recipe: Hyperparameters, state: TrainState
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, Metrics]]:
    c, mesh = experiment.config, experiment.mesh
    step = make_train_step(
        experiment.model,
        experiment.optimizer,
        recipe,
        num_classes=experiment.num_classes,
        mesh=mesh,
    )
    places = sharding.state_shardings(state, mesh)
    n, size = c.train.batch_size, c.data.image_size
    on_batch = sharding.batch_sharding(mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((n, size, size, 3), np.uint8, sharding=on_batch),
        "label": jax.ShapeDtypeStruct((n,), np.int32, sharding=on_batch),
    }
    began = time.perf_counter()
    compiled = (
        jax.jit(step, donate_argnums=0, out_shardings=(places, sharding.replicated(mesh)))
        .lower(state, batch)
        .compile()
    )
    console.say(
        f"Compiled a step with {recipe.policy.label} in {time.perf_counter() - began:.1f} s; "
        f"it needs {compiled.memory_analysis().temp_size_in_bytes / 1e6:,.1f} MB on each device "
        "besides the state."
    )
    return lambda state, batch: compiled(state, {name: batch[name] for name in ("image", "label")})
