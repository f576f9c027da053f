"""What a run leaves behind besides its checkpoints: samples, results, curves and figures."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from bvit import answers, distributed, sharding
from bvit import config as config_lib
from bvit import experiment as setup
from bvit.evaluation import evaluator as evaluate
from bvit.evaluation import imagenet_c
from bvit.evaluation import rows as report
from bvit.evaluation.evaluator import Evaluator
from bvit.report import comparison, lineage, plots
from bvit.report import overlays as pictures
from bvit.run_directory import RunDirectory, write_json
from bvit.studies import deblurring, deblurring_report
from bvit.tokens import Keep
from bvit.training.metrics import MetricsWriter, read_metrics
from bvit.training.state import TrainState

SAMPLES = 6  # test pictures that are shown with what the policies do to them


def show_samples(
    experiment: setup.Experiment, state: TrainState, writer: MetricsWriter, folder: Path
) -> None:
    """Draws a few test images under each condition, and what each policy shows of them.

    All processes take part; the first one draws.
    """
    mesh, hyper = experiment.mesh, experiment.recipes[0]
    batch = setup.sample_batch(experiment, SAMPLES)
    count = len(batch["index"])
    padded = count + -count % sharding.batch_shares(mesh)
    image, index = (
        sharding.put_whole(np.resize(batch[name], (padded, *batch[name].shape[1:])), mesh)
        for name in ("image", "index")
    )
    for name in experiment.conditions:
        pixels = evaluate.make_corrupt(name, seed=experiment.config.seed, mesh=mesh)(image, index)
        where = {
            policy.label: _on_host(
                evaluate.make_shown(
                    experiment.model,
                    policy,
                    mean=hyper.mean,
                    std=hyper.std,
                    seed=experiment.config.seed,
                )(state.eval_variables, pixels, index)
            )[:count]
            for policy in experiment.policies
            if policy != Keep()
        }
        pixels = _on_host(pixels)[:count]
        if distributed.is_main():
            figure = pictures.sheet(pixels, where)
            writer.image(int(state.step), f"samples/{name}", plots.pixels(figure))
            figure.savefig(folder / f"samples_{name.replace(':', '_')}.png", dpi=100)


def _on_host(array: Array) -> np.ndarray:
    return multihost_utils.process_allgather(array, tiled=True)


def gather(
    experiment: setup.Experiment,
    state: TrainState,
    evaluator: Evaluator,
    outcomes: list[evaluate.EvalResult],
) -> dict[str, Any]:
    """Sums up what the evaluator found of the trained state: what `results.json` will hold."""
    evaluator.measure(state.eval_variables)
    rows = report.make_rows(outcomes, evaluator.costs)
    return {
        "rows": rows,
        "imagenet_c": imagenet_c.summarize(rows),
        "deblurring": _deblurring(experiment, state, outcomes),
        "step": int(state.step),
        "seed": experiment.config.seed,
        "parameters": setup.num_parameters(state.params),
        "devices": [device.device_kind for device in jax.devices()],
        "baselines": setup.baselines(experiment),
        "config": config_lib.to_dict(experiment.config),
        "ancestors": lineage.read(experiment.config.init_from),
    }


def _deblurring(
    experiment: setup.Experiment, state: TrainState, outcomes: list[evaluate.EvalResult]
) -> list[deblurring.Row]:
    """What deblurring changes under the first policy; [] if no condition deblurs."""
    if not deblurring.methods(experiment.conditions):
        return []
    policy, recipe = experiment.policies[0], experiment.recipes[0]
    with setup.test_batches(experiment) as batches:
        batch = evaluate.put_batch(next(batches), experiment.mesh)
    costs = deblurring.measure(
        experiment.model,
        state.eval_variables,
        batch,
        experiment.conditions,
        policy,
        mean=recipe.mean,
        std=recipe.std,
        seed=recipe.seed,
        mesh=experiment.mesh,
    )
    return deblurring.make_rows([one for one in outcomes if one.policy == policy], costs)


def write(
    results: dict[str, Any],
    outcomes: list[evaluate.EvalResult],
    run: RunDirectory,
    writer: MetricsWriter,
) -> None:
    """Writes curves, figures, the answers to each picture, and last `results.json`.

    That `results.json` exists says that the run is finished.
    """
    writer.accuracies(results["step"], curves(results["rows"]))
    _describe(comparison.Run(run.path.name, results), writer)
    figures = plots.draw({"": results["rows"]}, {"": [read_metrics(run.path)]})
    if results["deblurring"]:
        figures["deblurring"] = deblurring_report.draw({"": results})
    for name, figure in figures.items():
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
