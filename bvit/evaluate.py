"""Evaluates a trained model: python -m bvit.evaluate --run=runs/vit_mask --conditions=motion

or published weights: python -m bvit.evaluate --weights=FILE --model=NAME --data=DIR. Nothing is
trained. DIR has a folder of images for each class, or holds such folders in DIR/val; they may be
some of the classes that the model knows, by their names or, for ImageNet, by WordNet ids. Weights
with a head of your own don't name its classes: DIR then has as many folders, sorted as for its fit.

Every image is classified under every condition and policy. The table, the answers to each image and
the figures go into a run directory of their own, beside what the run has: RUN/evaluations/NUMBER,
which bvit.report reads like any other. The same command prints a finished table again.
"""

import argparse
import contextlib
import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from bvit import config as config_lib
from bvit.arguments import EXIT_BAD_INPUT, Parser, fail
from bvit.data.sources import ALL
from bvit.experiment import prepare
from bvit.interrupt import Interrupted, SignalWatch, leave
from bvit.published import add_arguments, find
from bvit.run import Run
from bvit.trained import Trained
from bvit.training.loop import train_and_evaluate

EVALUATIONS = "evaluations"


def main(arguments: Sequence[str]) -> None:
    """Evaluates the model that the arguments name."""
    options = _parser().parse_args(arguments)
    logging.set_verbosity(logging.WARNING)
    try:
        with SignalWatch() as signals:
            evaluate(options, signals)
    except Interrupted as stop:
        leave(f"{stop}; run the same command to evaluate again.", stop.exit_code)
    except (ValueError, OSError) as error:
        fail(str(error), EXIT_BAD_INPUT)


def _parser() -> Parser:
    parser = Parser("python -m bvit.evaluate", __doc__)
    add_arguments(parser)
    parser.add_argument(
        "--data",
        default="",
        metavar="DIR",
        help="the test images: class folders, or the name of a data set; by default those of the "
        "run",
    )
    parser.add_argument(
        "--conditions",
        default="",
        metavar="A,B",
        help="what is done to the images: sharp, blur, region, motion, ...; by default those of "
        "the run, or sharp",
    )
    parser.add_argument(
        "--policies",
        default="",
        metavar="A,B",
        help="which tokens are computed: keep, cluster:0.5, ...; by default those of the run, or "
        "keep",
    )
    parser.add_argument("--batch_size", type=int, help="images that run together")
    parser.add_argument("--seed", type=int, help="of the blurs; by default that of the run, or 0")
    parser.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="where the results go; by default RUN/evaluations/NUMBER, or for weights "
        "runs/evaluations/NUMBER, by what is evaluated",
    )
    return parser


def evaluate(options: argparse.Namespace, signals: SignalWatch) -> None:
    """Evaluates a model, and prints the table.

    Raises:
      ValueError: the model, the data, a condition or a policy can't be used.
    """
    trained = find(options)
    config = make_config(trained, options)
    experiment = prepare(config, classes=trained.class_names)
    settings = config_lib.to_dict(config)
    workdir = options.workdir or _default_workdir(options, settings)
    with contextlib.closing(Run.begin(workdir, settings)) as run:
        train_and_evaluate(experiment, run, signals)


def make_config(trained: Trained, options: argparse.Namespace) -> ConfigDict:
    """The settings of an evaluation: the model's own, with what the flags change."""
    config, defaults = trained.config.copy_and_resolve_references(), config_lib.default_config()
    with config.unlocked():
        config.mesh, config.profile = defaults.mesh, defaults.profile  # were for the training
        config.init_from = str(options.run or options.weights)
        config.init_head = True
        config.train.steps = 0
        if options.weights:
            config.eval.conditions, config.eval.policies = "sharp", "keep"
            if not options.data:
                raise ValueError("published weights have no data: name a folder with --data=DIR.")
        if options.data:
            is_folder = Path(options.data).expanduser().is_dir()
            config.data.name = "folder" if is_folder else options.data
            config.data.dir = str(Path(options.data).expanduser()) if is_folder else ""
            config.data.test_split = ALL if is_folder else ""
            config.data.exclude = ""
        config.eval.conditions = options.conditions or config.eval.conditions
        config.eval.policies = options.policies or config.eval.policies
        if options.batch_size is not None:
            config.eval.batch_size = options.batch_size
        if options.seed is not None:
            config.seed = options.seed
    return config.lock()


def _default_workdir(options: argparse.Namespace, settings: dict) -> Path:
    """A folder that the same evaluation finds again."""
    number = zlib.crc32(json.dumps(settings, sort_keys=True).encode())
    return (options.run or Path("runs")) / EVALUATIONS / f"{number:08x}"


if __name__ == "__main__":
    main(sys.argv[1:])
