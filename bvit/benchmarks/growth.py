"""How a training step grows with batch, image, tokens and devices, and how its memory does.

The rows have no peer: beside its time each holds "axis" (what grows), "x" (how large it is) and
"images_per_s"; those of memory hold "mb", of each device besides the state, instead.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
from matplotlib.figure import Figure

from bvit.benchmarks.harness import Case, Kind, Row
from bvit.benchmarks.training import Step, make_step

# Network, batches, and the batch of rows in which something else grows: what a CPU does in seconds,
# and what fills an accelerator.
CPU = ("vit_tiny_patch16_224", (1, 2, 4, 8, 16, 32), 8)
ACCELERATOR = ("vit_base_patch16_224", (8, 16, 32, 64, 128, 256), 64)
SIZES = (64, 96, 128, 160, 192, 224)
# Of the 196 patches of 224 px; merge takes 49 and a multiple of 3.
BUDGETS = (49, 73, 97, 121, 145, 169)
SMALL, SIZE = 64, 224

TITLES = {
    "batch": "images in a batch",
    "size": "side of the image, px",
    "tokens": "patch tokens",
    "devices": "devices",
    "memory": "images in a batch",
}


def cases(kind: Kind) -> Iterator[Case]:
    """All rows of the suite; tiny ones are those of a CPU."""
    name, batches, fixed = ACCELERATOR if kind == "accelerator" else CPU
    step = functools.partial(make_step, name, condition="blur")
    for count in batches:
        yield _timed("batch", count, count, step(batch_size=count, size=SMALL))
    for size in SIZES:
        yield _timed("size", size, fixed, step(batch_size=fixed, size=size))
    for budget in BUDGETS:
        reduced = step(batch_size=fixed, size=SIZE, policy=f"merge:{budget}")
        yield _timed("tokens", budget, fixed, reduced)
    yield _timed("tokens", (SIZE // 16) ** 2, fixed, step(batch_size=fixed, size=SIZE))
    devices = 1
    while devices <= len(jax.devices()):
        count = max(batches)
        shared = step(batch_size=count, size=SMALL, devices=devices)
        yield _timed("devices", devices, count, shared)
        devices *= 2
    for remat in (False, True):
        for count in batches:
            yield _memory(count, remat, step(batch_size=count, size=SIZE, remat=remat))


def _timed(axis: str, x: int, images: int, step: Step) -> Case:
    values = {"axis": axis, "x": x}
    name = f"step with {x} {TITLES[axis]}"
    return Case("growth", name, step.runner(), flops=step.flops(), images=images, values=values)


def _memory(count: int, remat: bool, step: Step) -> Case:
    compiled = step.jitted().lower(step.state, step.batch).compile()
    analysis = compiled.memory_analysis()
    why = "" if analysis else "XLA does not say how much memory the step needs here"
    values = {
        "axis": "memory",
        "x": count,
        "remat": remat,
        "mb": analysis.temp_size_in_bytes / 1e6 if analysis else None,
    }
    name = f"memory with {count} images in a batch{', rematerialised' * remat}"
    return Case("growth", name, None, why=why, values=values)


def draw(rows: Sequence[Row]) -> Figure:
    """Draws the rows of this suite: a panel for each thing that grows."""
    rows = [row for row in rows if row["suite"] == "growth"]
    axes_names = [axis for axis in TITLES if any(row["axis"] == axis for row in rows)]
    figure = Figure(figsize=(2.6 * len(axes_names), 2.8), layout="constrained")
    grid = figure.subplots(1, len(axes_names), squeeze=False)[0]
    for axes, axis in zip(grid, axes_names, strict=True):
        chosen = [row for row in rows if row["axis"] == axis]
        if axis == "memory":
            for remat, label in ((False, "all kept"), (True, "rematerialised")):
                points = [(row["x"], row["mb"]) for row in chosen if row["remat"] == remat]
                axes.plot(*zip(*points, strict=True), marker="o", label=label)
            axes.legend(frameon=False)
        else:
            points = [(row["x"], row["images_per_s"]) for row in chosen]
            axes.plot(*zip(*points, strict=True), marker="o")
        axes.set(xlabel=TITLES[axis], ylabel="MB" if axis == "memory" else "images/s")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
