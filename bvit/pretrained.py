"""Published weights, straight to answers: the model, its variables, and how images are prepared.

    model, variables, preprocess = bvit.pretrained.open("deit_tiny_patch16_224.safetensors")
    images = preprocess("cat.jpg", "dog.jpg")
    logits = bvit.classify(model, variables, images, mean=preprocess.mean, std=preprocess.std)

`convert` and `load` give variables alone, for a model that you make by `bvit.models.create`.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn

from bvit import models
from bvit.data import preprocessing
from bvit.data.preprocessing import Preprocessing
from bvit.models.pretrained import convert, head_size, load, published_paths, read, resolve
from bvit.models.weight_files import HUB_PREFIX

__all__ = ["Preprocessing", "Weights", "convert", "identify", "load", "open", "read", "resolve"]

# Beside the weights of timm's repositories: the model's name, and how its images are prepared.
SETTINGS = "config.json"
# The image size at the end of a model's name: "_384".
SIZE = re.compile(r"_(\d{2,4})$")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Published weights, their model, and how it wants images.

    Attributes:
      model: a key of `bvit.models.MODELS`.
      options: of `bvit.models.create`, which follow from the weights: `num_classes`, and for a ViT
        `image_size` and `pool`.
      preprocess: how images are prepared.
      arrays: by their published names.
    """

    model: str
    options: Mapping[str, Any]
    preprocess: Preprocessing
    arrays: Mapping[str, np.ndarray]

    def variables(self) -> dict:
        """The variables of the model, as `convert` returns them."""
        return convert(self.model, self.arrays, **self.options)


def open(name: str | Path, path: str | Path = "") -> tuple[nn.Module, dict, Preprocessing]:
    """A published classifier with everything that it takes to classify images.

    Args:
      name: the model, a key of `bvit.models.MODELS` or timm's name for it; or, without `path`,
        the weights, from whose name or config.json the model is known.
      path: the weights: a file, or one on the Hugging Face hub, as for `load`.

    Returns:
      (model, variables, preprocess): a module of `bvit.models.create`; its variables, float32
      arrays of NumPy; and `Preprocessing`, which turns files into pixels for `bvit.classify` and
      has the `mean` and `std` to give it.

    Raises:
      ValueError: the weights can't be read, their model is not known or not supported, or they
        have no classifier.
      ImportError: they are on the hub, and huggingface_hub is not installed.
    """
    found = identify(name, path) if path else identify("", name)
    return models.create(found.model, **found.options), found.variables(), found.preprocess


def identify(name: str | Path, path: str | Path) -> Weights:
    """Reads published weights, and finds their model and its preparation.

    Args:
      name: the model, as for `open`; "" to know it from the weights.
      path: the weights.

    Raises:
      ValueError, ImportError: as for `open`.
    """
    file, settings = resolve(path), _settings(path)
    source = str(path).removeprefix(HUB_PREFIX) if _is_on_hub(path) else file.name
    model, size = _model(str(name) or settings.get("architecture", ""), source)
    arrays = read(file)
    num_classes = head_size(model, arrays)
    if not num_classes:
        raise ValueError(
            f"{path} has no classifier, only features: train one with configs/finetune.py and "
            f"--config.init_from={path}."
        )
    if "pretrained_cfg" in settings:
        preprocess = preprocessing.from_timm(settings["pretrained_cfg"])
    else:
        preprocess = preprocessing.by_name(str(name) or model, source, size)
    options: dict[str, Any] = {"num_classes": num_classes}
    if models.is_vit(model):
        options["image_size"] = preprocess.image_size
        has_class_token = "params/cls_token" in published_paths(arrays)
        if models.create(model).pool == "cls" and not has_class_token:
            options["pool"] = "mean"
    return Weights(model, options, preprocess, arrays)


def _is_on_hub(path: str | Path) -> bool:
    return str(path).startswith(HUB_PREFIX)


def _settings(path: str | Path) -> dict[str, Any]:
    """The config.json beside weights, as timm writes it; {} without one."""
    if _is_on_hub(path):
        repository = "/".join(str(path).split("/")[:2])
        try:
            beside = resolve(f"{repository}/{SETTINGS}")
        except ValueError:  # there is none
            return {}
    else:
        beside = Path(path).expanduser().with_name(SETTINGS)
    try:
        found = json.loads(beside.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "architecture" in found else {}


def _model(name: str, source: str) -> tuple[str, int]:
    """The key of the table for a model's name, and the size of its images.

    Args:
      name: the model's; "" to know it from the weights.
      source: name of the file or repository of the weights.
    """
    if not name:
        stem = source.split("/")[1] if "/" in source else source
        name = max(filter(stem.startswith, _known()), key=len, default="")
        if not name:
            raise ValueError(
                f"the name of {source} does not begin with that of a model: give that too, for a "
                f"command with --model=NAME. Choose from {models.SOME}."
            )
    plain = name.partition(".")[0]  # behind the dot timm has how the weights were trained
    size = SIZE.search(plain)
    bases = (plain, SIZE.sub("_224", plain), SIZE.sub("_256", plain))
    base = next((one for one in bases if one in models.MODELS), "")
    if not base:
        models.create(name)  # raises, and suggests
    return base, int(size[1]) if size else 224


def _known() -> list[str]:
    """The names of models, those of ViTs for other sizes of images too."""
    others = [SIZE.sub("_384", name) for name in models.MODELS if models.is_vit(name)]
    return [*models.MODELS, *others]
