"""Weights of a tiny ViT under a published name."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from bvit import models

NAME = "deit_pico_patch16_224"
PICO = partial(models.VisionTransformer, patch_size=16, width=8, depth=1, num_heads=1)


def add_pico(monkeypatch) -> None:
    """Adds the tiny ViT to the table of models, for one test."""
    monkeypatch.setitem(models.MODELS, NAME, PICO)


def write_weights(path: Path, **options) -> Path:
    """Writes random weights of the tiny ViT, made with some options."""
    model = PICO(**options)
    size = options.get("image_size", 224)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, size, size, 3)))
    rng = np.random.default_rng(0)
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): rng.normal(size=leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    save_file(arrays, path)
    return path
