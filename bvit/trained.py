"""A model that can be used, and how a config becomes a model and a policy."""

import functools
from typing import Any

from flax import linen as nn
from jaxtyping import PyTree
from ml_collections import ConfigDict

from bvit import config as config_lib
from bvit import models
from bvit.classify import check
from bvit.data.preprocessing import RESIZE_RATIO, Preprocessing
from bvit.tokens import Policy, parse


class Trained:
    """A model that can be used: what a run and published weights have in common.

    Attributes:
      config: the settings; locked.
      class_names: the names of the classes, in the order of the logits.
      step: the step that `variables` are from; None before `load`, and for published weights.
      variables: None before `load`.
    """

    config: ConfigDict
    class_names: tuple[str, ...]
    step: int | None = None
    variables: PyTree | None = None

    @functools.cached_property
    def model(self) -> nn.Module:
        """The classifier, without its variables."""
        return build_model(self.config, len(self.class_names))

    @property
    def preprocess(self) -> Preprocessing:
        """How images are prepared for the model."""
        c = self.config.data
        return Preprocessing(
            c.image_size,
            c.resize or round(c.image_size * RESIZE_RATIO),
            c.interpolation,
            tuple(c.mean),
            tuple(c.std),
        )

    def policy(self, text: str = "") -> Policy:
        """A policy as people type it, "merge:31"; "" is the first that the model trained with.

        Raises:
          ValueError: there is no such policy, or the model can't follow it.
        """
        text = text or config_lib.words(self.config.tokens.policy)[0]
        return build_policy(self.config, self.model, text)


def build_model(config: ConfigDict, num_classes: int) -> nn.Module:
    """The classifier that a config names."""
    return models.create(config.model.name, num_classes=num_classes, **model_options(config))


def model_options(config: ConfigDict) -> dict[str, Any]:
    """The options of `bvit.models.create` that a config names."""
    options = {k: v for k, v in config.model.items() if k != "name" and v is not None}
    if models.is_vit(config.model.name):
        options["image_size"] = config.data.image_size
    return options


def build_policy(config: ConfigDict, model: nn.Module, text: str) -> Policy:
    """Reads a policy as people type it, with a config's focus measure and threshold.

    Raises:
      ValueError: there is no such policy, or the model can't follow it.
    """
    c = config.tokens
    policy = parse(text, score=c.score, threshold=c.threshold, zero_at=c.zero_at)
    check(model, policy)
    return policy
