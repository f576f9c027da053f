"""The training and evaluation of one run, from its checked pieces to its results.

Read `step.py` next: one update. `bvit/experiment.py` has the meaning of the config.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from bvit import config as config_lib
from bvit import distributed, sharding
from bvit import experiment as experiment_lib
from bvit.checkpoint import Checkpoints
from bvit.evaluation.evaluator import Evaluator
from bvit.evaluation.rows import make_rows
from bvit.experiment import Experiment
from bvit.interrupt import Interrupted, SignalWatch
from bvit.run import Run
from bvit.tokens import Policy
from bvit.training import console, results
from bvit.training.feed import Feed
from bvit.training.meter import Meter
from bvit.training.metrics import MetricsWriter
from bvit.training.profile import StepTrace
from bvit.training.state import TrainState, create_state
from bvit.training.step import Hyperparameters, Metrics, make_train_step
from bvit.training.validation import Interruptible, Validation


def train_and_evaluate(experiment: Experiment, run: Run, signals: SignalWatch) -> dict[str, Any]:
    """Trains, evaluates and reports one run; an interrupted one goes on where it stopped.

    Args:
      experiment: of `bvit.experiment.prepare`.
      run: of `Run.begin`, with the same config.
      signals: reports signals that ask the run to stop.

    Returns:
      The contents of `results.json`.

    Raises:
      CheckpointError: the run's checkpoints are of another model, or all damaged.
      CheckpointWriteError: the state could not be saved; the checkpoints before it are kept.
      NonFiniteLossError: training diverged; the last good checkpoint is kept.
      UnreadableImageError, DataWorkerError: the data can't be read.
      Interrupted: a signal came; during training, the state is saved first.
    """
    if run.is_finished(config_lib.to_dict(experiment.config)):
        found = run.results
        console.say(f"This run is finished (step {found['step']}).")
    else:
        found = _run(experiment, run, signals)
    console.say(console.summary(found, run))
    return found


def _run(experiment: Experiment, run: Run, signals: SignalWatch) -> dict[str, Any]:
    keep = experiment.config.checkpoint.keep
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(run.checkpoints, keep=keep)
        stack.enter_context(contextlib.closing(checkpoints))
        state = _restore_or_create(experiment, checkpoints)
        step = int(state.step)
        console.say(console.introduction(experiment, state))
        is_main = distributed.is_main()
        writer = MetricsWriter(run.path if is_main else None, start_step=step)
        stack.enter_context(contextlib.closing(writer))
        trace = StepTrace(experiment.config.profile.steps, run.path)
        stack.enter_context(contextlib.closing(trace))
        evaluator = experiment_lib.make_evaluator(experiment)
        validation = _validation(experiment, run, writer, step, stack)
        if is_main:
            run.write_class_names(experiment.test_source.class_names)
            writer.config(config_lib.flatten(config_lib.to_dict(experiment.config)))
            writer.compare_policies(experiment.conditions)
        state = train(experiment, state, checkpoints, writer, trace, evaluator, signals, validation)
        if validation:
            state = validation.best(state)
        outcomes = evaluator(state.eval_variables)
        results.show_samples(experiment, state, writer, run.figures, outcomes)
        found = results.gather(experiment, state, evaluator, outcomes)
        checkpoints.wait()  # a run with results is finished: its last state must be saved
        if is_main:
            results.write(found, outcomes, run, writer)
    return found


def _validation(
    experiment: Experiment,
    run: Run,
    writer: MetricsWriter,
    start_step: int,
    stack: contextlib.ExitStack,
) -> Validation | None:
    evaluator = experiment_lib.make_validator(experiment)
    if evaluator is None:
        return None
    return Validation(
        evaluator,
        stack.enter_context(contextlib.closing(Checkpoints(run.best, keep=1))),
        writer,
        before=[line for line in run.metrics if line["step"] <= start_step],
        patience=experiment.config.train.patience,
    )


class _Testing:
    """Logs the accuracies on the test images while training; used without a `Validation`."""

    after_last, is_over = False, False  # the results of the run have those of the last step

    def __init__(self, evaluator: Evaluator, writer: MetricsWriter, mesh: Mesh) -> None:
        self._evaluator, self._writer = evaluator, writer
        # The first process knows.
        self.steps = [int(jax.device_get(distributed.greatest(writer.evaluated, mesh)))]

    def __call__(
        self, step: int, state: TrainState, interruptible: Interruptible = contextlib.nullcontext
    ) -> None:
        with interruptible():
            outcomes = self._evaluator(state.eval_variables)
        self._writer.accuracies(step, results.curves(make_rows(outcomes, self._evaluator.costs)))


def abstract_state(experiment: Experiment) -> TrainState:
    """Shape, dtype and placement of the whole state of a training."""
    key = jax.random.key(experiment.config.seed)
    return sharding.abstract(jax.eval_shape(_creator(experiment), key), experiment.mesh)


def _creator(experiment: Experiment) -> Callable[..., TrainState]:
    return functools.partial(
        create_state,
        model=experiment.model,
        optimizer=experiment.optimizer,
        image_size=experiment.config.data.image_size,
        ema=experiment.config.train.ema_decay > 0,
    )


def _restore_or_create(experiment: Experiment, checkpoints: Checkpoints) -> TrainState:
    like = abstract_state(experiment)
    restored = checkpoints.restore_state(vars(like))
    if restored is not None:
        step, state = restored
        console.say(f"Going on from the checkpoint of step {step}.")
        return TrainState(**state)
    initial = experiment.initial
    if initial is not None:
        initial = jax.device_put(initial, sharding.state_shardings(initial, experiment.mesh))
    places = jax.tree.map(lambda leaf: leaf.sharding, like)
    create = jax.jit(_creator(experiment), out_shardings=places)
    return create(jax.random.key(experiment.config.seed), initial)


def train(
    experiment: Experiment,
    state: TrainState,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    trace: StepTrace,
    evaluator: Evaluator,
    signals: SignalWatch,
    validation: Validation | None = None,
) -> TrainState:
    """Updates the state until the last step of the run, saving and logging on the way.

    Every `eval.every_steps` updates the state is validated, which may end the training; without a
    validation, the test images are evaluated instead.

    The metrics of a step are read while the next one runs, so the device never waits for the host.
    A checkpoint is written only after its loss was checked to be finite. The metrics include the
    signal that any process has received, so that all processes stop at the same step. Before each
    evaluation a checkpoint is written, so that a signal can stop the evaluation at once; the run
    begins with it when it goes on.
    """
    c, total, start = experiment.config, experiment.total_steps, int(jax.device_get(state.step))
    evaluate = validation or _Testing(evaluator, writer, experiment.mesh)

    def is_due(step: int) -> bool:
        every = c.eval.every_steps
        between = every > 0 and step < total and step % every == 0
        return step > 0 and (between or (step == total and evaluate.after_last))

    if is_due(start) and start not in evaluate.steps:
        evaluate(start, state)
    if start >= total or evaluate.is_over:
        return state
    updates = [_compile_step(experiment, policy, state) for policy in experiment.train_policies]
    meter = Meter(
        writer,
        experiment.schedule,
        start_step=start,
        total_steps=total,
        batch_size=c.train.batch_size,
        log_every=c.log.every_steps,
        skip_nonfinite=c.train.skip_nonfinite,
    )
    feed = Feed(functools.partial(experiment_lib.train_batches, experiment), start)
    pending = None

    @contextlib.contextmanager
    def interruptible() -> Iterator[None]:
        with signals.released():
            yield
        checkpoints.wait()  # only what is saved is logged

    with contextlib.closing(feed), contextlib.closing(meter), signals.held():
        for step in range(start + 1, total + 1):
            batch = sharding.put_rows(meter.wait_for(feed), experiment.mesh)
            update = updates[_draw(c.seed, step, len(updates))]
            state, metrics = trace.run(step, update, state, batch)
            metrics["signal"] = distributed.greatest(signals.received, experiment.mesh)
            stop = meter.read(*pending) if pending else 0
            pending = (step, metrics)
            if stop or is_due(step) or step == total or step % c.checkpoint.every_steps == 0:
                stop = meter.read(*pending) or stop
                pending = None
                checkpoints.save(step, vars(state))
            if stop:
                checkpoints.wait()
                raise Interrupted(stop, step)
            if is_due(step):
                evaluate(step, state, interruptible)
                meter.restart_clock()
                if evaluate.is_over:
                    break
    return state


def _draw(seed: int, step: int, choices: int) -> int:
    """Draws the policy of a step, on the host: each policy has a compiled program of its own."""
    return int(np.random.default_rng((seed, step)).integers(choices))


def _compile_step(
    experiment: Experiment, policy: Policy, state: TrainState
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, Metrics]]:
    began = time.perf_counter()
    compiled = lower_step(experiment, policy, state).compile()
    console.say(
        f"Compiled a step with {policy.label} in {time.perf_counter() - began:.1f} s; "
        f"it needs {compiled.memory_analysis().temp_size_in_bytes / 1e6:,.1f} MB on each device "
        "besides the state."
    )
    return lambda state, batch: compiled(state, {name: batch[name] for name in ("image", "label")})


def lower_step(experiment: Experiment, policy: Policy, state: TrainState) -> jax.stages.Lowered:
    """Traces the update of a state under a policy; `state` may be that of `abstract_state`."""
    c, mesh = experiment.config, experiment.mesh
    step = make_train_step(
        experiment.model,
        experiment.optimizer,
        _hyperparameters(experiment, policy),
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
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(places, sharding.replicated(mesh)))
    return jitted.lower(state, batch)


def _hyperparameters(experiment: Experiment, policy: Policy) -> Hyperparameters:
    c = experiment.config
    return Hyperparameters(
        condition=c.train.condition,
        policy=policy,
        mean=tuple(c.data.mean),
        std=tuple(c.data.std),
        label_smoothing=c.train.label_smoothing,
        color_jitter=tuple(c.train.color_jitter),
        rand_augment=tuple(c.train.rand_augment),
        mixup=c.train.mixup,
        cutmix=c.train.cutmix,
        ema_decay=c.train.ema_decay,
        accumulate=c.train.accumulate,
        skip_nonfinite=c.train.skip_nonfinite > 0,
        distill=c.train.distill,
        distill_temperature=c.train.distill_temperature,
        sandwich=c.train.sandwich,
        seed=c.seed,
    )
