"""What a run leaves behind besides its checkpoints: samples, results, curves and figures."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from bvit import config as config_lib
from bvit import distributed, sharding
from bvit import experiment as experiment_lib
from bvit.evaluation import imagenet_c
from bvit.evaluation.evaluator import EvalResult, Evaluator, make_corrupt, make_shown
from bvit.evaluation.rows import Row, make_rows
from bvit.experiment import Experiment
from bvit.report import comparison, overlays, plots
from bvit.run import Run, ancestors
from bvit.tokens import Keep
from bvit.training.metrics import MetricsWriter
from bvit.training.state import TrainState

SAMPLES = 6  # test images that are shown with what the policies do to them


def show_samples(
    experiment: Experiment, state: TrainState, writer: MetricsWriter, folder: Path
) -> None:
    """Draws a few test images under each condition, and what each policy shows of them.

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
            figure = overlays.sheet(pixels, where)
            writer.image(int(state.step), f"samples/{name}", plots.pixels(figure))
            figure.savefig(folder / f"samples_{name.replace(':', '_')}.png", dpi=100)


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
    for name, figure in plots.draw({"": results["rows"]}, {"": [run.metrics]}).items():
        figure.savefig(run.figures / f"{name}.png", dpi=150)
        writer.image(results["step"], f"figures/{name}", plots.pixels(figure))
    run.write_answers(found)
    run.write_results(results)


def curves(rows: list[Row]) -> dict[str, float]:
    """Accuracy as points on curves, one for each condition and policy."""
    return {f"{row['condition']}/{row['policy']}": row["top1"] for row in rows}
