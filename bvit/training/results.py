"""What a run leaves behind besides its checkpoints: samples, results, curves and figures."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from bvit import config as config_lib
from bvit import experiment as experiment_lib
from bvit import sharding
from bvit.evaluation import evaluate, imagenet_c
from bvit.evaluation.evaluator import Evaluator
from bvit.evaluation.rows import Row, make_rows, policy_label
from bvit.experiment import Experiment
from bvit.report import comparison, overlays, plots
from bvit.run import Run, ancestors
from bvit.tokens.inputs import SHOW_EVERYTHING, shown_levels
from bvit.training.metrics import MetricsWriter
from bvit.training.state import TrainState

SAMPLES = 6  # test images that are shown with what the policies do to them


def show_samples(experiment: Experiment, writer: MetricsWriter, folder: Path) -> None:
    """Draws a few test images under each condition, and what each policy does with them."""
    batch = experiment_lib.sample_batch(experiment, SAMPLES)
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
        figure = overlays.sheet(np.asarray(image), levels)
        writer.image(0, f"samples/{name}", plots.pixels(figure))
        figure.savefig(folder / f"samples_{name.replace(':', '_')}.png", dpi=100)


def gather(
    experiment: Experiment,
    state: TrainState,
    evaluator: Evaluator,
    outcomes: list[evaluate.Outcome],
) -> dict[str, Any]:
    """The contents of `results.json`, from what the evaluator found for the trained state."""
    evaluator.measure(state.eval_variables)
    rows = make_rows(outcomes, evaluator.costs)
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
    outcomes: list[evaluate.Outcome],
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
    run.write_answers(outcomes)
    run.write_results(results)


def curves(rows: list[Row]) -> dict[str, float]:
    """Accuracy as points on curves, one for each condition and policy."""
    return {f"{row['condition']}/{policy_label(row)}": row["top1"] for row in rows}
