"""What a run tells the person at the keyboard."""

from typing import Any

import jax

from bvit import distributed, sharding
from bvit import experiment as setup
from bvit.classify import num_tokens
from bvit.evaluation import cost, imagenet_c
from bvit.evaluation import rows as report
from bvit.run_directory import RunDirectory
from bvit.studies import deblurring_report
from bvit.training.state import TrainState


def say(text: str) -> None:
    """Prints, once for all processes."""
    if distributed.is_main():
        print(text, flush=True)


def introduction(experiment: setup.Experiment, state: TrainState) -> str:
    """Devices, model, cost of an image, data and length of the training."""
    c, mesh = experiment.config, experiment.mesh
    tokens = {
        policy.label: num_tokens(experiment.model, policy, c.data.image_size)
        for policy in experiment.policies
    }
    forward = cost.gflops(
        experiment.model, state.eval_variables, experiment.recipes[0].policy, c.data.image_size
    )
    devices, processes = jax.devices(), jax.process_count()
    return "\n".join(
        [
            f"devices     {len(devices)} × {devices[0].device_kind}, mesh {dict(mesh.shape)}"
            + (f", {processes} processes" if processes > 1 else ""),
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


def summary(results: dict[str, Any], run: RunDirectory) -> str:
    """The table, and where everything lies."""
    lines = ["", report.format_table(results["rows"])]
    sections = [(imagenet_c.TITLE, imagenet_c.table_lines(results["rows"]))]
    for title, cells in sections + deblurring_report.tables({"": results}):
        lines += ["", title, report.align(cells)] if cells else []
    lines += [f"{name}: {100 * share:.1f} %" for name, share in results["baselines"].items()]
    lines += [
        "",
        f"results     {run.results}",
        f"figures     {run.figures}",
        f"curves      tensorboard --logdir {run.path}",
    ]
    return "\n".join(lines)
