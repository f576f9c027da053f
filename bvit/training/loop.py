"""The training and evaluation of one run, from its config to its results.

Read `step.py` next: what one update does. What a config means is in `setup.py`.
"""

import contextlib
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from bvit import config as config_lib
from bvit import data
from bvit.evaluation import cost, evaluate, pictures, report
from bvit.evaluation.evaluator import Evaluator
from bvit.models.inputs import shown_levels
from bvit.training import setup, sharding
from bvit.training.checkpoint import Checkpoints
from bvit.training.interrupt import Interrupted, SignalWatch
from bvit.training.meter import Meter
from bvit.training.metrics import MetricsWriter, read_metrics
from bvit.training.rundir import RunDirectory, write_json
from bvit.training.state import TrainState, create_state
from bvit.training.step import Metrics, Recipe, make_train_step

SAMPLES = 6  # test pictures that are shown with what the policies do to them
SHOW_EVERYTHING = ("keep", "tome")  # policies of which there is nothing to draw


def train_and_evaluate(experiment: setup.Experiment, run: RunDirectory) -> dict[str, Any]:
    """Trains, evaluates and reports one run; picks up where an interrupted one stopped.

    Args:
      experiment: of `setup.prepare`.
      run: the run directory, new or of the same config.

    Returns:
      What `results.json` holds.

    Raises:
      CheckpointError: the run's checkpoints are of another model, or all damaged.
      NonFiniteLossError: training diverged; the last good checkpoint is kept.
      Interrupted: a signal came; the state is saved.
    """
    if run.results.exists():
        results = json.loads(run.results.read_text())
        _say(f"This run is finished (step {results['step']}).")
    else:
        results = _run(experiment, run)
    _say(_summary(results, run))
    return results


def _run(experiment: setup.Experiment, run: RunDirectory) -> dict[str, Any]:
    c = experiment.config
    with contextlib.closing(Checkpoints(run.checkpoints, keep=c.checkpoint.keep)) as checkpoints:
        state = _restore_or_create(experiment, checkpoints)
        step = int(state.step)
        _say(_introduction(experiment, state))
        is_main = jax.process_index() == 0
        writer = MetricsWriter(run.path if is_main else None, start_step=step)
        evaluator = setup.make_evaluator(experiment)
        with contextlib.closing(writer):
            if is_main and not step:
                _show_samples(experiment, writer, run.figures)
            state = train(experiment, state, checkpoints, writer, evaluator)
            results = _results(experiment, state, evaluator)
            _write_results(experiment, results, run, writer)
    return results


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
        _say(f"Going on from the checkpoint of step {step}.")
        return state
    return jax.jit(create, out_shardings=shardings)(key, experiment.initial)


def train(
    experiment: setup.Experiment,
    state: TrainState,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    evaluator: Evaluator,
) -> TrainState:
    """Updates the state until the last step of the run, saving and logging on the way.

    The metrics of a step are read while the next one runs, so the device never waits for the host;
    but no checkpoint is written before the loss it rests on has been seen to be finite.
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
    batches = data.train_batches(
        experiment.train_source,
        batch_size=c.train.batch_size,
        image_size=c.data.image_size,
        seed=c.seed,
        start_step=start,
        num_steps=total - start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        scale=tuple(c.data.crop_scale),
        flip=c.data.flip,
        num_workers=c.data.num_workers,
        on_error=c.data.on_error,
    )
    pending = None
    with contextlib.closing(batches), contextlib.closing(meter), SignalWatch() as watch:
        for step in range(start + 1, total + 1):
            batch = evaluate.put_batch(meter.wait_for(batches), experiment.mesh)
            state, metrics = updates[_draw(c.seed, step, len(updates))](state, batch)
            if pending:
                meter.read(*pending)
            pending = (step, metrics)
            save = step == total or step % c.checkpoint.every_steps == 0
            if save or watch.received:
                meter.read(*pending)
                pending = None
                checkpoints.save(step, state)
            if watch.received:
                checkpoints.wait()
                raise Interrupted(watch.received, step)
            if c.eval.every_steps and step % c.eval.every_steps == 0 and step < total:
                writer.scalars(
                    step,
                    _curves(report.make_rows(evaluator(state.eval_variables), evaluator.costs)),
                )
                meter.restart_clock()
    return state


def _draw(seed: int, step: int, choices: int) -> int:
    """Which recipe a step uses: drawn on the host, so that each is one compiled program."""
    return int(np.random.default_rng((seed, step)).integers(choices))


def _compile_step(
    experiment: setup.Experiment, recipe: Recipe, state: TrainState
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
    _say(f"Compiled a step with {recipe.policy.label} in {time.perf_counter() - began:.1f} s.")
    return lambda state, batch: compiled(state, {name: batch[name] for name in ("image", "label")})


def _show_samples(experiment: setup.Experiment, writer: MetricsWriter, folder: Path) -> None:
    """Draws a few test pictures under each condition, and what each policy does with them."""
    batch = setup.sample_batch(experiment, SAMPLES)
    one_device = sharding.make_mesh(devices=jax.local_devices()[:1])
    keys = jax.random.split(jax.random.key(experiment.config.seed), len(batch["index"]))
    for name in experiment.conditions:
        corrupt = evaluate.make_corrupt(name, seed=experiment.config.seed, mesh=one_device)
        image = corrupt(batch["image"], batch["index"])
        levels = {
            policy.label: np.asarray(shown_levels(image, policy, keys=keys))
            for policy in experiment.policies
            if policy.name not in SHOW_EVERYTHING
        }
        figure = pictures.sheet(np.asarray(image), levels)
        writer.image(0, f"samples/{name}", report.pixels(figure))
        figure.savefig(folder / f"samples_{name.replace(':', '_')}.png", dpi=100)


def _results(
    experiment: setup.Experiment, state: TrainState, evaluator: Evaluator
) -> dict[str, Any]:
    outcomes = evaluator(state.eval_variables)
    evaluator.measure(state.eval_variables)
    return {
        "rows": report.make_rows(outcomes, evaluator.costs),
        "step": int(state.step),
        "seed": experiment.config.seed,
        "parameters": setup.num_parameters(state.params),
        "devices": [device.device_kind for device in jax.devices()],
        "baselines": setup.baselines(experiment),
        "config": config_lib.to_dict(experiment.config),
    }


def _write_results(
    experiment: setup.Experiment,
    results: dict[str, Any],
    run: RunDirectory,
    writer: MetricsWriter,
) -> None:
    if jax.process_index() != 0:
        return
    curves = _curves(results["rows"])
    writer.scalars(results["step"], curves)
    writer.hparams(config_lib.flatten(results["config"]), curves)
    for name, figure in report.draw(results["rows"], read_metrics(run.path)).items():
        figure.savefig(run.figures / f"{name}.png", dpi=150)
        writer.image(results["step"], f"figures/{name}", report.pixels(figure))
    write_json(run.results, results)  # last: that it exists says that the run is finished


def _curves(rows: list[report.Row]) -> dict[str, float]:
    return {f"{row['condition']}/{report.policy_label(row)}": row["top1"] for row in rows}


def _introduction(experiment: setup.Experiment, state: PyTree) -> str:
    c, mesh = experiment.config, experiment.mesh
    tokens = {
        policy.label: cost.num_tokens(experiment.model, policy, c.data.image_size)
        for policy in experiment.policies
    }
    forward = cost.gflops(
        experiment.model, state.eval_variables, experiment.recipes[0].policy, c.data.image_size
    )
    devices = jax.devices()
    return "\n".join(
        [
            f"devices     {len(devices)} × {devices[0].device_kind}, mesh {dict(mesh.shape)}",
            f"model       {c.model.name}, {setup.num_parameters(state.params):,} parameters",
            f"state       {sharding.describe(state, mesh)}",
            f"an image    {c.data.image_size} px, {forward:.3f} GFLOPs, tokens "
            + ", ".join(f"{label} {count:.3g}" for label, count in tokens.items()),
            f"data        {c.data.name}: {len(experiment.train_source):,} training and "
            f"{len(experiment.test_source):,} test images, {experiment.num_classes} classes",
            f"training    {experiment.total_steps:,} steps of {c.train.batch_size} images, "
            f"{c.train.condition}",
        ]
    )


def _summary(results: dict[str, Any], run: RunDirectory) -> str:
    lines = ["", report.format_table(results["rows"])]
    lines += [f"{name}: {100 * share:.1f} %" for name, share in results["baselines"].items()]
    lines += [
        "",
        f"results     {run.results}",
        f"figures     {run.figures}",
        f"curves      tensorboard --logdir {run.path}",
    ]
    return "\n".join(lines)


def _say(text: str) -> None:
    """Tells the person at the keyboard, once for all processes."""
    if jax.process_index() == 0:
        print(text, flush=True)
