"""A trained run, loaded to be used: its model, variables and classes, without its data."""

import contextlib
import dataclasses
import functools
import json
from pathlib import Path

import jax
import optax
from flax import linen as nn
from jaxtyping import PyTree
from ml_collections import ConfigDict

from bvit import config as config_lib
from bvit import data
from bvit import experiment as setup
from bvit.checkpoint import Checkpoints
from bvit.tokens import Policy
from bvit.training.state import create_state


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """What a run directory holds for those who use the model.

    Attributes:
      path: the run directory.
      config: its settings.
      model: the classifier.
      variables: the trained ones (averaged, where the run kept an average), on one device.
      class_names: in the order of the logits.
      step: of the checkpoint they are from.
    """

    path: Path
    config: ConfigDict
    model: nn.Module
    variables: PyTree
    class_names: tuple[str, ...]
    step: int

    def policy(self, text: str = "") -> Policy:
        """A policy as people type it, "merge:31"; "" is the first that the run trained with.

        Raises:
          ValueError: no such policy, or the model can't follow it.
        """
        text = text or config_lib.words(self.config.tokens.policy)[0]
        return setup.build_policy(self.config, self.model, text)


def load(path: Path) -> TrainedRun:
    """Loads a run from its newest undamaged checkpoint, whatever devices it was trained on.

    Args:
      path: the run directory.

    Returns:
      The run; its variables lie on the first device.

    Raises:
      ValueError: the folder is no run, has no checkpoint yet, or only damaged ones.
    """
    if not (path / "config.json").exists():
        raise ValueError(f"{path} is no run directory: it has no config.json.")
    config = config_lib.load(path / "config.json")
    class_names = _class_names(path, config)
    model = setup.build_model(config, len(class_names))
    step, variables = _restore(path, config, model, class_names)
    return TrainedRun(path, config, model, variables, class_names, step)


def _class_names(path: Path, config: ConfigDict) -> tuple[str, ...]:
    saved = path / "classes.json"
    if saved.exists():
        return tuple(json.loads(saved.read_text()))
    try:
        return data.open_source(
            config.data.name,
            split="train",
            dir=config.data.dir or None,
            split_name=config.data.train_split,
            image_size=config.data.image_size,
        ).class_names
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path} has no classes.json, and its data can't be asked for the names: {error} Write "
            "the names of the classes into that file, a JSON list in the order of the labels."
        ) from error


def _restore(
    path: Path, config: ConfigDict, model: nn.Module, class_names: tuple[str, ...]
) -> tuple[int, PyTree]:
    """The step of the newest checkpoint, and the variables in it."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if config.train.steps == 0:  # a run that only evaluated its initial weights
        return 0, jax.device_put(setup.build_initial(config, class_names), place)
    create = functools.partial(
        create_state,
        model=model,
        optimizer=setup.build_optimizer(config, optax.constant_schedule(0.0)),
        image_size=config.data.image_size,
        ema=config.train.ema_decay > 0,
    )
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(create, jax.random.key(0)),
    )
    restored = None
    if (path / "checkpoints").is_dir():
        with contextlib.closing(Checkpoints(path / "checkpoints")) as checkpoints:
            restored = checkpoints.restore_newest(like)
    if restored is None:
        raise ValueError(f"{path} has no checkpoint yet: run its command until it has saved one.")
    step, state = restored
    return step, state.eval_variables
