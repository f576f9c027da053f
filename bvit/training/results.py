"""What a run leaves behind besides its checkpoints: samples, results, curves and figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array
from matplotlib.figure import Figure

from bvit import config as config_lib
from bvit import distributed, sharding
from bvit import experiment as experiment_lib
from bvit.data.imagenet import readable
from bvit.evaluation import imagenet_c
from bvit.evaluation.evaluator import EvalResult, Evaluator, make_corrupt, make_shown
from bvit.evaluation.rows import Row, make_rows
from bvit.evaluation.statistics import confusion
from bvit.experiment import Experiment
from bvit.report import comparison, overlays, plots
from bvit.run import Run, ancestors
from bvit.tokens import Keep
from bvit.training.metrics import MetricsWriter
from bvit.training.state import TrainState

SAMPLES = 6  # test images that are shown with what the policies do to them
MOST_NAMES = 40  # a confusion matrix of more classes can't be read


def show_samples(
    experiment: Experiment,
    state: TrainState,
    writer: MetricsWriter,
    folder: Path,
    found: list[EvalResult],
) -> None:
    """Draws a few test images under each condition: what each policy shows of them, and its label.

    All processes take part; the first one draws.
    """
    c, mesh = experiment.config, experiment.mesh
    batch = experiment_lib.sample_batch(experiment, SAMPLES)
    count = len(batch["index"])
    padded = count + -count % sharding.batch_shares(mesh)
    image, index = (
        sharding.put_whole(np.resize(batch[name], (padded, *batch[name].shape[1:])), mesh)
        for name in ("image", "index")
    )
    names = experiment.test_source.class_names
    truth = [readable(names[label]) for label in batch["label"]]
    options = {"mean": tuple(c.data.mean), "std": tuple(c.data.std), "seed": c.seed}
    drawn = {
        policy.label: make_shown(experiment.model, policy, **options)
        for policy in experiment.policies
        if policy != Keep()
    }
    for name in experiment.conditions:
        pixels = make_corrupt(name, seed=c.seed, mesh=mesh)(image, index)
        where = {
            label: _on_host(shown(state.eval_variables, pixels, index))[:count]
            for label, shown in drawn.items()
        }
        pixels = _on_host(pixels)[:count]
        if distributed.is_main():
            answers = {
                one.policy.label: _labels(one, batch["index"], names)
                for one in found
                if one.condition == name
            }
            figure = overlays.sheet(pixels, where, answers, truth)
            writer.image(int(state.step), f"samples/{name}", plots.pixels(figure))
            plots.save(figure, folder, f"samples_{name.replace(':', '_')}")


def _labels(one: EvalResult, places: np.ndarray, names: Sequence[str]) -> list[str]:
    """What a policy called some test images; "" for one that could not be read."""
    predicted = dict(zip(one.index.tolist(), one.predicted, strict=True))
    return [readable(names[predicted[i]]) if i in predicted else "" for i in places.tolist()]


def _on_host(array: Array) -> np.ndarray:
    return multihost_utils.process_allgather(array, tiled=True)


def gather(
    experiment: Experiment,
    state: TrainState,
    evaluator: Evaluator,
    found: list[EvalResult],
) -> dict[str, Any]:
    """The contents of `results.json`, from what the evaluator found for the trained state."""
    evaluator.measure(state.eval_variables)
    rows = make_rows(found, evaluator.costs)
    return {
        "rows": rows,
        "imagenet_c": imagenet_c.summarize(rows),
        "step": int(state.step),
        "seed": experiment.config.seed,
        "parameters": state.num_parameters,
        "devices": [device.device_kind for device in jax.devices()],
        "baselines": experiment_lib.baselines(experiment),
        "config": config_lib.to_dict(experiment.config),
        "ancestors": ancestors(experiment.config.init_from),
    }


def write(
    results: dict[str, Any],
    found: list[EvalResult],
    run: Run,
    writer: MetricsWriter,
) -> None:
    """Writes curves, figures, the answers to each image, and last `results.json`.

    A run that has `results.json` is finished.
    """
    writer.accuracies(results["step"], curves(results["rows"]))
    settings = config_lib.complete(results["config"])
    name = f"{settings['model.name']}, {comparison.trained_on(settings)}"
    folder = Path(settings["data.dir"]).name  # the rest of the path differs between machines
    writer.hparams(name, comparison.telling_apart(settings) | {"data.dir": folder})
    figures = plots.draw({"": results["rows"]}, {"": [run.metrics]}, {"": [run.evaluations]})
    if len(run.class_names) <= MOST_NAMES:
        figures["confusion"] = _confusion(found, run.class_names)
    for name, figure in figures.items():
        plots.save(figure, run.figures, name)
        writer.image(results["step"], f"figures/{name}", plots.pixels(figure))
    run.write_answers(found)
    run.write_results(results)


def _confusion(found: list[EvalResult], class_names: Sequence[str]) -> Figure:
    """The confusion matrix of the first policy under each condition."""
    policy = found[0].policy
    tables = {
        one.condition: confusion(one.label, one.predicted, len(class_names))
        for one in found
        if one.policy == policy
    }
    return plots.draw_confusion(tables, class_names, policy.label)


def curves(rows: list[Row]) -> dict[str, float]:
    """Accuracy as points on curves, one for each condition and policy."""
    return {f"{row['condition']}/{row['policy']}": row["top1"] for row in rows}
