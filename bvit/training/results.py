"""What a run leaves behind besides its checkpoints: samples, results, curves and figures."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from bvit import answers, sharding
from bvit import config as config_lib
from bvit import experiment as setup
from bvit.evaluation import evaluate, imagenet_c
from bvit.evaluation import rows as report
from bvit.evaluation.evaluator import Evaluator
from bvit.report import comparison, lineage, plots
from bvit.report import overlays as pictures
from bvit.run_directory import RunDirectory, write_json
from bvit.tokens.inputs import SHOW_EVERYTHING, shown_levels
from bvit.training.metrics import MetricsWriter, read_metrics
from bvit.training.state import TrainState

SAMPLES = 6  # test pictures that are shown with what the policies do to them


def show_samples(experiment: setup.Experiment, writer: MetricsWriter, folder: Path) -> None:
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
        writer.image(0, f"samples/{name}", plots.pixels(figure))
        figure.savefig(folder / f"samples_{name.replace(':', '_')}.png", dpi=100)


def gather(
    experiment: setup.Experiment,
    state: TrainState,
    evaluator: Evaluator,
    outcomes: list[evaluate.Outcome],
) -> dict[str, Any]:
    """Sums up what the evaluator found of the trained state: what `results.json` will hold."""
    evaluator.measure(state.eval_variables)
    rows = report.make_rows(outcomes, evaluator.costs)
    return {
        "rows": rows,
        "imagenet_c": imagenet_c.summarize(rows),
        "step": int(state.step),
        "seed": experiment.config.seed,
        "parameters": setup.num_parameters(state.params),
        "devices": [device.device_kind for device in jax.devices()],
        "baselines": setup.baselines(experiment),
        "config": config_lib.to_dict(experiment.config),
        "ancestors": lineage.read(experiment.config.init_from),
    }


def write(
    results: dict[str, Any],
    outcomes: list[evaluate.Outcome],
    run: RunDirectory,
    writer: MetricsWriter,
) -> None:
    """Writes curves, figures, the answers to each picture, and last `results.json`.

    That `results.json` exists says that the run is finished.
    """
    writer.accuracies(results["step"], curves(results["rows"]))
    _describe(comparison.Run(run.path.name, results), writer)
    for name, figure in plots.draw({"": results["rows"]}, {"": [read_metrics(run.path)]}).items():
        figure.savefig(run.figures / f"{name}.png", dpi=150)
        writer.image(results["step"], f"figures/{name}", plots.pixels(figure))
    answers.write(run.path, outcomes)
    write_json(run.results, results)


def _describe(run: comparison.Run, writer: MetricsWriter) -> None:
    folder = Path(run.settings["data.dir"]).name  # of a path, what is worth reading
    settings = comparison.telling_apart(run.settings) | {"data.dir": folder}
    writer.hparams(f"{run.settings['model.name']}, {run.trained_on}", settings)


def curves(rows: list[report.Row]) -> dict[str, float]:
    """Accuracy as points on curves, one for each condition and policy."""
    return {f"{row['condition']}/{report.policy_label(row)}": row["top1"] for row in rows}
