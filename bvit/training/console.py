"""What a run prints."""

from typing import Any

import jax
from tqdm import tqdm

from bvit import distributed, sharding
from bvit.classify import num_tokens
from bvit.evaluation import cost, imagenet_c
from bvit.evaluation.rows import align, format_table
from bvit.experiment import Experiment
from bvit.run import Run
from bvit.training.state import TrainState


def say(text: str) -> None:
    """Prints, once for all processes, above a progress bar."""
    if distributed.is_main():
        with tqdm.external_write_mode():
            print(text, flush=True)


def introduction(experiment: Experiment, state: TrainState) -> str:
    """Devices, model, cost of an image, data and, if there is one, length of the training."""
    c, mesh = experiment.config, experiment.mesh
    tokens = {
        policy.label: num_tokens(experiment.model, policy, c.data.image_size)
        for policy in experiment.policies
    }
    forward = cost.gflops(
        experiment.model, state.eval_variables, experiment.train_policies[0], c.data.image_size
    )
    source = experiment.train_source
    valid = experiment.valid_source
    counts = [f"{len(source):,} training"] if source else []
    counts += [f"{len(valid):,} validation"] if valid else []
    counts += [f"{len(experiment.test_source):,} test"]
    devices, processes = jax.devices(), jax.process_count()
    lines = [
        f"devices     {len(devices)} × {devices[0].device_kind}"
        + (f", mesh {dict(mesh.shape)}" if mesh.size > 1 else "")
        + (f", {processes} processes" if processes > 1 else ""),
        f"model       {c.model.name}, {state.num_parameters:,} parameters",
        f"state       {sharding.describe(state, mesh)}",
        f"an image    {c.data.image_size} px, {forward:.3f} GFLOPs, tokens "
        + ", ".join(f"{label} {count:.3g}" for label, count in tokens.items()),
        f"data        {c.data.name}: {', '.join(counts)} images, {experiment.num_classes} classes",
    ]
    if source:
        lines += [
            f"training    {experiment.total_steps:,} steps of {c.train.batch_size} images, "
            f"{c.train.condition}"
        ]
    return "\n".join(lines)


def summary(results: dict[str, Any], run: Run) -> str:
    """The tables of results, and the paths of everything else."""
    lines = ["", format_table(results["rows"])]
    if cells := imagenet_c.table_lines(results["rows"]):
        lines += ["", imagenet_c.TITLE, align(cells)]
    lines += [f"{name}: {100 * share:.1f} %" for name, share in results["baselines"].items()]
    lines += [
        "",
        f"results     {run.results_file}",
        f"figures     {run.figures}",
        f"curves      tensorboard --logdir {run.path}",
    ]
    return "\n".join(lines)
