"""What the commands use: a run that was trained here, or published weights."""

import argparse
import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from bvit import sharding
from bvit.config import default_config
from bvit.data.imagenet import class_names
from bvit.pretrained import Weights, identify
from bvit.run import BEST, CHECKPOINTS, Run
from bvit.trained import Trained


class Published(Trained):
    """Published weights, with the settings that they are used with."""

    def __init__(self, name: str, path: str) -> None:
        """Reads the weights; arguments and errors are those of `bvit.pretrained.open`."""
        self._weights = identify(name, path)
        self.config = _config(self._weights, path)
        self.class_names = _class_names(self._weights.options["num_classes"])

    def load(self) -> "Published":
        """Converts the weights; returns itself, with `variables` on the first device."""
        mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
        variables = self._weights.variables()
        self.variables = jax.device_put(variables, sharding.state_shardings(variables, mesh))
        return self


def _config(weights: Weights, path: str) -> ConfigDict:
    config, preprocess = default_config(), weights.preprocess
    config.init_from = path
    config.init_head = True
    config.train.steps = 0
    config.data.image_size = preprocess.image_size
    config.data.resize = preprocess.short_side
    config.data.interpolation = preprocess.interpolation
    config.data.mean = preprocess.mean
    config.data.std = preprocess.std
    config.model.name = weights.model
    if "pool" in weights.options:
        config.model.pool = weights.options["pool"]
    return config.lock()


def _class_names(count: int) -> tuple[str, ...]:
    """ImageNet's WordNet ids where there are as many classes; numbers otherwise."""
    ids = tuple(class_names())
    return ids if count == len(ids) else tuple(str(number) for number in range(count))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name a trained model: --run, or --weights and --model."""
    parser.add_argument("--run", type=Path, metavar="DIR", help="run directory of the model")
    parser.add_argument(
        "--weights",
        default="",
        metavar="FILE",
        help="instead of a run: published weights, a file or hf:owner/name; images are prepared as "
        "their authors do",
    )
    parser.add_argument(
        "--model",
        default="",
        metavar="NAME",
        help="of the weights, where the name of their file does not say it: deit_tiny_patch16_224",
    )


def find(options: argparse.Namespace) -> Run | Published:
    """The trained model that the flags name, before `load`.

    Raises:
      ValueError: they name none or two, or one that can't be used.
    """
    if bool(options.run) == bool(options.weights) or (options.model and not options.weights):
        raise ValueError(
            "name one model: --run=DIR of a training, or --weights=FILE of published weights "
            "with --model=NAME."
        )
    if options.run:
        return Run(options.run)
    try:
        return Published(options.model, options.weights)
    except ImportError as error:
        raise ValueError(str(error)) from error


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that says which checkpoint of a run `load` takes."""
    parser.add_argument(
        "--checkpoint",
        choices=CHECKPOINTS,
        default=BEST,
        help="of a run: the best on the validation images, if it has any; or the newest",
    )


def load(options: argparse.Namespace) -> Run | Published:
    """The trained model that the flags name, loaded; errors are those of `find` and `load`."""
    trained = find(options)
    if isinstance(trained, Run):
        return trained.load(checkpoint=options.checkpoint)
    return trained.load()


def keep_programs() -> None:
    """Keeps compiled programs in the user's cache, so that the next command starts sooner.

    Where JAX_COMPILATION_CACHE_DIR names a folder, it is that one.
    """
    if not jax.config.jax_compilation_cache_dir:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "bvit" / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
