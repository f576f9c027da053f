"""Deblur or not: what a model gains from images that are deblurred first, and what that costs.

    python -m bvit.main --config=configs/deblur_or_not.py:run=runs/cnn --workdir=runs/deblur/cnn
    python -m bvit.studies.deblurring runs/deblur/* [--plot=FILE] [--to=FILE]

A run is a finished evaluation on conditions that deblur, such as "wiener:stored:blur", and on the
same images as they are, "stored:blur". Its answers under its first policy are taken from its
directory. The time and the operations of deblurring and classifying an image are measured here, on
one device. Several runs share a table if they were tested on the same images. A second table says
how close to the sharp image the deblurring comes, over all test images.
"""

import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from jaxtyping import Array, Bool, Float
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from ml_collections import ConfigDict

from bvit import config as config_lib
from bvit import experiment, outputs, sharding
from bvit.arguments import EXIT_BAD_INPUT, Parser, fail
from bvit.evaluation import cost
from bvit.evaluation.evaluator import make_classify, make_corrupt
from bvit.evaluation.statistics import paired_difference, wilson_interval
from bvit.image.conditions import DEBLURRING, split_deblurring
from bvit.image.deblur import deblur_gaussian
from bvit.image.pixels import to_float
from bvit.report import formats, plots
from bvit.report.tables import NOT_RUN
from bvit.run import Run
from bvit.tokens import Policy

DIRECT = "direct"
# The sigma that deblurring is timed with where it needs one; no time depends on it.
TIMED_SIGMA = 1.5
# Settings that the tested images and their blurs follow from.
SAME = (
    "seed",
    "data.name",
    "data.test_split",
    "data.exclude",
    "data.image_size",
    "data.resize",
    "data.interpolation",
)
ACCURACIES = (
    "Deblurred or not: top-1 in % with its 95 % interval; then the difference to the first line, "
    "on the same images, with its interval"
)
QUALITY = "What deblurring restores: mean PSNR and SSIM against the sharp image"
MARKERS = "osD^vP*X"

Cell = tuple[str, str]  # The images as they are, "noisy:blur", and the method or "direct".


@dataclasses.dataclass(frozen=True)
class Tested:
    """What a run answered, directly and after deblurring.

    Attributes:
      name: of its directory.
      right: which test images it had right in each cell.
      costs: method → "ms" and "gflops" of one image.
    """

    name: str
    right: Mapping[Cell, Bool[np.ndarray, " n"]]
    costs: Mapping[str, Mapping[str, float]]


def cells(conditions: Iterable[str]) -> dict[Cell, str]:
    """Conditions that deblur, and those of the same images as they are, by their cells."""
    found = {}
    for name in conditions:
        method, images = split_deblurring(name)
        found[images, method or DIRECT] = name
    deblurred = {images for images, method in found if method != DIRECT}
    return {cell: name for cell, name in found.items() if cell[0] in deblurred}


def measure(
    run: Run, policy: Policy, methods: Iterable[str], batch: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Measures what classification costs, directly and after each deblurring, on one batch.

    Args:
      run: whose model is used.
      policy: what the model does with blurry patches.
      methods: keys of `bvit.image.conditions.DEBLURRING`.
      batch: of `bvit.data.eval_batches`.

    Returns:
      For "direct" and each method: "ms" and "gflops" of one image, deblurring and forward pass.
    """
    c = run.config
    classify = make_classify(
        run.model, policy, mean=tuple(c.data.mean), std=tuple(c.data.std), seed=c.seed, mesh=_mesh()
    )

    def after(method):
        restore = jax.jit(partial(_deblur, method))
        return lambda variables, image, index: classify(variables, restore(image), index)

    size = c.data.image_size
    forward = cost.gflops(run.model, run.variables, policy, size)
    operations = {DIRECT: forward} | {method: forward + gflops(method, size) for method in methods}
    functions = {DIRECT: classify} | {method: after(method) for method in methods}
    pixels, index = to_float(jnp.asarray(batch["image"])), jnp.asarray(batch["index"])
    speeds = cost.images_per_second(functions, run.variables, pixels, index)
    return {m: {"ms": 1000 / speeds[m], "gflops": operations[m]} for m in functions}


def restored(
    batches: Iterable[Mapping[str, np.ndarray]], conditions: Mapping[Cell, str], *, seed: int
) -> dict[Cell, tuple[float, float]]:
    """Compares what a model sees with the sharp images.

    Args:
      batches: of `bvit.data.eval_batches`.
      conditions: of `cells`.
      seed: of the test blurs.

    Returns:
      For each cell the means over the images of the peak signal-to-noise ratio, in dB, and of the
      structural similarity (Wang et al. 2004).
    """
    corruptions = {
        cell: make_corrupt(name, seed=seed, mesh=_mesh()) for cell, name in conditions.items()
    }
    found: dict[Cell, list[np.ndarray]] = {cell: [] for cell in conditions}
    for batch in batches:
        sharp = to_float(jnp.asarray(batch["image"]))
        for cell, corrupt in corruptions.items():
            quality = _quality(corrupt(batch["image"], batch["index"]), sharp)
            found[cell].append(np.asarray(quality)[:, batch["mask"]])
    means = {cell: np.concatenate(parts, axis=1).mean(axis=1) for cell, parts in found.items()}
    return {cell: (float(psnr), float(ssim)) for cell, (psnr, ssim) in means.items()}


@jax.jit
def _quality(image: Float[Array, "n h w 3"], sharp: Float[Array, "n h w 3"]) -> Array:
    return jnp.stack([dm_pix.psnr(image, sharp), dm_pix.ssim(image, sharp)])


def gflops(method: str, image_size: int) -> float:
    """Billions of floating-point operations to deblur one square RGB image.

    As XLA counts them, with two corrections: XLA counts one turn of a loop, and overstates Fourier
    transforms of several axes. Here all turns count, and 5 n log2(n) for a complex transform of n
    values, half of that for a real one.

    Args:
      method: one of `bvit.image.conditions.DEBLURRING`.
      image_size: side of the image, in pixels.
    """
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    with jax.disable_jit():  # loops are unrolled
        traced = jax.jit(partial(_deblur, method)).trace(image)
        total = traced.lower().cost_analysis()["flops"]
    counted: dict[str, float] = {}
    for equation in _transforms(traced.jaxpr.jaxpr):
        alike = str((equation.invars[0].aval, equation.params))
        if alike not in counted:
            counted[alike] = _operations(equation) - _by_xla(equation)
        total += counted[alike]
    return float(total) / 1e9


def _deblur(method: str, image: Array) -> Array:
    name, blind = DEBLURRING[method]
    return deblur_gaussian(image, None if blind else TIMED_SIGMA, method=name)


def _transforms(jaxpr: Any) -> list[Any]:
    """The Fourier transforms in a program, also within its parts."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive is jax.lax.fft_p:
            found.append(equation)
        for part in jaxprs_in_params(equation.params):
            found += _transforms(part)
    return found


def _operations(equation: Any) -> float:
    """By the usual count of a fast Fourier transform."""
    lengths = equation.params["fft_lengths"]
    values = math.prod(lengths)
    real = equation.params["fft_type"] not in (jax.lax.FftType.FFT, jax.lax.FftType.IFFT)
    times = math.prod(equation.invars[0].aval.shape[: -len(lengths)])
    return times * 5 * values * math.log2(values) / (2 if real else 1)


def _by_xla(equation: Any) -> float:
    aval = equation.invars[0].aval
    transform = jax.jit(lambda x: equation.primitive.bind(x, **equation.params))
    return transform.lower(jax.ShapeDtypeStruct(aval.shape, aval.dtype)).cost_analysis()["flops"]


def accuracy_lines(tested: Sequence[Tested]) -> list[list[str]]:
    """A line for each run and method, a column for each kind of image, header first."""
    kinds = _kinds(tested)
    lines = [["run", "method", "ms", "GFLOPs", *kinds]]
    first: dict[str, np.ndarray] = {}
    for run in tested:
        for method, costs in run.costs.items():
            own = [_accuracy(run.right.get((kind, method)), kind, first) for kind in kinds]
            numbers = [f"{costs['ms']:.2f}", f"{costs['gflops']:.3f}"]
            lines.append([run.name, method, *numbers, *own])
    return lines


def _accuracy(right: np.ndarray | None, kind: str, first: dict[str, np.ndarray]) -> str:
    """A cell's text; `first` keeps which images the first line with this kind had right."""
    if right is None:
        return NOT_RUN
    text = f"{100 * right.mean():.1f}"
    baseline = first.setdefault(kind, right)
    if baseline is right:
        low, high = wilson_interval(int(right.sum()), len(right))
        return f"{text} [{100 * low:.1f}, {100 * high:.1f}]"
    difference, (low, high) = paired_difference(right, baseline)
    return f"{text}: {100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def quality_lines(quality: Mapping[Cell, tuple[float, float]]) -> list[list[str]]:
    """A line for each method, a column for each kind of image, header first."""
    kinds, methods = (list(dict.fromkeys(names)) for names in zip(*quality, strict=True))
    texts = {cell: f"{psnr:.2f} dB, {ssim:.3f}" for cell, (psnr, ssim) in quality.items()}
    lines = [
        [method, *(texts.get((kind, method), NOT_RUN) for kind in kinds)] for method in methods
    ]
    return [["method", *kinds], *lines]


def draw(tested: Sequence[Tested]) -> Figure:
    """Accuracy against milliseconds: a panel for each kind of image."""
    kinds = _kinds(tested)
    methods = list(dict.fromkeys(method for run in tested for method in run.costs))
    figure = Figure(figsize=(2.5 * len(kinds) + 2, 3.2), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharex=True, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for i, run in enumerate(tested):
            for method, costs in run.costs.items():
                right = run.right.get((kind, method))
                if right is not None:
                    ci95 = wilson_interval(int(right.sum()), len(right))
                    label = f"{run.name}, {method}"
                    marker = MARKERS[methods.index(method) % len(MARKERS)]
                    style = {"color": f"C{i % 10}", "marker": marker, "linestyle": "none"}
                    row = {"top1": right.mean(), "ci95": ci95}
                    plots.draw_points(axes, [costs["ms"]], [row], label, **style)
        axes.set_title(kind, fontsize="medium")
        axes.set(xscale="log", xlabel="ms for an image", ylim=(0, None))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel(plots.TOP1)
    plots.add_legend(figure, list(panels))
    return figure


def _kinds(tested: Sequence[Tested]) -> list[str]:
    return list(dict.fromkeys(kind for run in tested for kind, _ in run.right))


def study(paths: Sequence[Path]) -> tuple[list[Tested], dict[Cell, tuple[float, float]]]:
    """Measures runs, and the quality of the images that they saw.

    Raises:
      ValueError: a folder is no finished run, its run deblurred nothing, or runs were tested on
        different images.
    """
    opened, conditions, same = [], {}, {}
    for path in paths:
        run = Run(path)
        policy = run.policy(config_lib.words(run.config.eval.policies)[0])
        kept = run.answers
        own = cells(name for name, label in kept.ranks if label == policy.label)
        if not own:
            raise ValueError(f"{path} deblurred nothing: evaluate configs/deblur_or_not.py.")
        for key, value in _images(run.config, kept.index).items():
            if value != (first := same.setdefault(key, value)):
                raise ValueError(
                    f"{paths[0]} and {path} were not tested on the same images: {key} is "
                    f"{first!r} and {value!r}; study one after the other."
                )
        right = {cell: kept.ranks[name, policy.label] == 0 for cell, name in own.items()}
        opened.append((run, policy, right))
        conditions |= own
    c = opened[0][0].config
    source = experiment.open_test_source(c)
    with experiment.eval_batches(c, source) as batches:
        batch = next(batches)
    tested = []
    for run, policy, right in opened:
        methods = dict.fromkeys(method for _, method in right if method != DIRECT)
        tested.append(Tested(run.name, right, measure(run.load(), policy, methods, batch)))
    with experiment.eval_batches(c, source) as batches:
        return tested, restored(batches, conditions, seed=c.seed)


def _images(c: ConfigDict, index: np.ndarray) -> dict[str, Any]:
    """What says which images were tested, and how they were blurred."""
    settings = config_lib.flatten(config_lib.to_dict(c))
    folder = Path(c.data.dir).name  # the rest of the path differs between machines
    return {key: settings[key] for key in SAME} | {"data.dir": folder, "images": len(index)}


def _mesh() -> jax.sharding.Mesh:
    return sharding.make_mesh(devices=jax.local_devices()[:1])


def main(arguments: Sequence[str]) -> None:
    """Prints the tables of the runs that the arguments name."""
    parser = Parser("python -m bvit.studies.deblurring", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw accuracy against time")
    parser.add_argument("--to", type=Path, metavar="FILE", help="write there, not to stdout")
    options = parser.parse_args(arguments)
    try:
        for path in filter(None, (options.plot, options.to)):
            outputs.check(path)
        tested, quality = study(options.runs)
        tables = [(ACCURACIES, accuracy_lines(tested)), (QUALITY, quality_lines(quality))]
        text = formats.as_markdown(tables)
        if options.plot:
            outputs.write_figure(options.plot, draw(tested), dpi=110)
        if options.to:
            outputs.write(options.to, formats.marked(text, "markdown").encode())
        else:
            print(text)
    except (ValueError, OSError) as error:
        fail(str(error), EXIT_BAD_INPUT)


if __name__ == "__main__":
    main(sys.argv[1:])
