"""Published weights as variables of bvit's models: every array is used, every parameter filled."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from bvit import models
from bvit.models import resample, weight_names
from bvit.models.googlenet import GoogLeNet
from bvit.models.resnet import ResNet
from bvit.models.vgg import VGG
from bvit.models.vit import VisionTransformer
from bvit.models.weight_files import read, resolve

__all__ = ["convert", "head_size", "load", "published_paths", "read", "resolve"]

# The modules of the head, which depends on the number of classes.
HEADS: dict[type[nn.Module], tuple[str, ...]] = {
    ResNet: ("fc",),
    VGG: ("classifier_6",),
    GoogLeNet: ("fc", "aux1/fc2", "aux2/fc2"),
    VisionTransformer: ("head", "head_dist"),
}

# What weights may come without, or a model be made without.
OPTIONAL: dict[type[nn.Module], tuple[str, ...]] = {
    GoogLeNet: ("aux1", "aux2"),
}

# The CNNs' variables do not depend on the size of their images.
CNN_IMAGE_SIZE = 224

# What bvit's ViTs lack, by a part of the names that published weights give it.
UNSUPPORTED = {
    "q_norm": "normalised queries and keys",
    "vit.encoder.": "the names of Hugging Face's transformers (timm has the same weights)",
    "encoder.layers.": "the names of torchvision's ViTs (timm has ViTs too)",
}

# The dense layers of a ViT's block whose outputs LayerScale multiplies.
SCALED = {"ls1": "attn/proj", "ls2": "mlp/fc2"}

Published = dict[str, tuple[str, np.ndarray]]  # path in bvit to published name, array


def load(
    name: str, path: str | Path, *, replace_head: bool = False, seed: int = 0, **overrides
) -> dict:
    """Variables of a model from a file of published weights.

    Args:
      name: a key of `bvit.models.MODELS`.
      path: a .safetensors (bvit.export's too), .npz (Google's ViTs: AugReg, big_vision) or .pth
        file, or one on the Hugging Face hub, "hf:timm/resnet50.tv_in1k".
      replace_head: as for `convert`.
      seed: as for `convert`.
      **overrides: of the model, as for `bvit.models.create`.

    Returns:
      As `convert`.

    Raises:
      ValueError: the file is missing, broken or not safe to read, or does not fit the model.
      ImportError: the file is on the hub, and huggingface_hub is not installed.
    """
    state_dict = read(resolve(path))
    return convert(name, state_dict, replace_head=replace_head, seed=seed, **overrides)


def convert(
    name: str,
    state_dict: Mapping[str, np.ndarray],
    *,
    replace_head: bool = False,
    seed: int = 0,
    **overrides,
) -> dict:
    """Published weights as variables of a model.

    Feed the images as those weights were trained: normalised by ImageNet's mean and deviation for
    torchvision's CNNs, to [-1, 1] (0.5 and 0.5) for Google's ViTs, also where timm has them.

    Args:
      name: a key of `bvit.models.MODELS`.
      state_dict: names of torchvision or timm, of Google's ViTs, or paths in bvit's variables
        ("params/conv1/kernel"), to arrays. PyTorch's count of batches, `num_batches_tracked`, is
        left out.
      replace_head: give the model a new head, drawn as for training from scratch, and leave out
        the published one, if there is one: needed where the number of classes differs.
      seed: of what is drawn: a new head, and what published weights lack (GoogLeNet's auxiliary
        heads, if the file has none).
      **overrides: of the model, as for `bvit.models.create`. A ViT's position and patch embeddings
        are resampled for its `image_size` and `patch_size`.

    Returns:
      {"params": …} and for CNNs with batch norm {"batch_stats": …}: float32 arrays of NumPy, on the
      host, for the caller to place.

    Raises:
      ValueError: an array has no place in the model, or a parameter is not filled (all are
        listed), or an array is not floating point.
    """
    model = models.create(name, **overrides)
    wanted = _shapes(model)
    arrays = {published_name: np.asarray(array) for published_name, array in state_dict.items()}
    published = weight_names.to_paths(arrays)
    _check_floats(published)
    if isinstance(model, VisionTransformer):
        published = _fitted_to_vit(_with_folded_scales(published), model, wanted)
    new_parts = _new_parts(model, published, wanted, replace_head)
    published = {path: v for path, v in published.items() if not _lies_in(path, new_parts)}
    drawn = [path for path in wanted if _lies_in(path, new_parts)]
    _check_fit(name, published, {path: wanted[path] for path in wanted if path not in drawn})
    filled = {path: np.ascontiguousarray(v, np.float32) for path, (_, v) in published.items()}
    return traverse_util.unflatten_dict(filled | _draw(model, seed, drawn), sep="/")


def published_paths(state_dict: Mapping[str, np.ndarray]) -> set[str]:
    """The paths in bvit's variables that published weights fill, known or not."""
    return set(weight_names.to_paths(state_dict))


def head_size(name: str, state_dict: Mapping[str, np.ndarray]) -> int:
    """How many classes the head of published weights has, 0 where there is none.

    Args:
      name: a key of `bvit.models.MODELS`.
      state_dict: as for `convert`.
    """
    head = HEADS[type(models.create(name))][0]
    _, bias = weight_names.to_paths(state_dict).get(f"params/{head}/bias", ("", np.zeros(0)))
    return len(bias)


def _check_floats(published: Published) -> None:
    for source, array in published.values():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"weights must be floating point: got {array.dtype} in {source}.")


def _images(model: nn.Module) -> jax.Array:
    size = model.image_size if isinstance(model, VisionTransformer) else CNN_IMAGE_SIZE
    height, width = np.broadcast_to(size, 2)
    return jnp.zeros((1, height, width, 3))


def _init(model: nn.Module, key: jax.Array) -> dict[str, jax.Array]:
    return traverse_util.flatten_dict(model.init(key, _images(model), train=False), sep="/")


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    variables = jax.eval_shape(lambda key: _init(model, key), jax.random.key(0))
    return {path: leaf.shape for path, leaf in variables.items()}


def _draw(model: nn.Module, seed: int, paths: list[str]) -> dict[str, np.ndarray]:
    """Initial values of some of the variables; jit drops the computation of the others."""

    @jax.jit
    def draw(key):
        variables = _init(model, key)
        return {path: variables[path] for path in paths}

    return jax.device_get(draw(jax.random.key(seed))) if paths else {}


def _with_folded_scales(published: Published) -> Published:
    """Folds LayerScale (Touvron et al. 2021, arXiv:2103.17239) into the dense layers before it."""
    folded = dict(published)
    for scale, layer in SCALED.items():
        for path, (source, array) in published.items():
            name = f"{path.partition(f'/{layer}/')[0]}/{scale}/gamma"
            _, gamma = published.get(name, ("", np.zeros(0)))
            if gamma.shape == array.shape[-1:]:
                folded[path] = source, array * gamma
                folded.pop(name, None)
    return folded


def _fitted_to_vit(
    published: Published, model: VisionTransformer, wanted: dict[str, tuple[int, ...]]
) -> Published:
    """Resamples embeddings, and splits the axis on which PyTorch keeps all attention heads."""
    fitted = dict(published)
    for path, (source, array) in published.items():
        shape = wanted.get(path, array.shape)
        if path == "params/pos_embed" and array.ndim == 3:
            array = resample.resample_positions(array, model.grid, prefix=model.positioned)
        elif path == "params/patch_embed/kernel" and array.ndim == 4:
            array = resample.resample_patch_kernel(array, model.patch_size)
        elif "/attn/" in path and array.ndim < len(shape) and array.size == np.prod(shape):
            array = array.reshape(shape)
        fitted[path] = source, array
    return fitted


def _new_parts(
    model: nn.Module,
    published: Published,
    wanted: dict[str, tuple[int, ...]],
    replace_head: bool,
) -> tuple[str, ...]:
    """Modules and parameters that are drawn anew, without their published arrays."""
    parts = HEADS[type(model)] if replace_head else ()
    for part in OPTIONAL.get(type(model), ()):
        sides = (any(_lies_in(path, (part,)) for path in side) for side in (published, wanted))
        if len(set(sides)) == 2:
            parts += (part,)
    return parts


def _lies_in(path: str, parts: tuple[str, ...]) -> bool:
    _, _, below_collection = path.partition("/")
    return f"{below_collection}/".startswith(tuple(f"{part}/" for part in parts))


def _check_fit(name: str, published: Published, wanted: dict[str, tuple[int, ...]]) -> None:
    unused = [source for path, (source, _) in published.items() if path not in wanted]
    missing = [path for path in wanted if path not in published]
    misshapen = [
        f"{source} as {array.shape} for {path} {wanted[path]}"
        for path, (source, array) in published.items()
        if path in wanted and array.shape != wanted[path]
    ]
    if not (unused or missing or misshapen):
        return
    lines = [
        f"these weights are not those of {name} as it was asked for; check the name, and "
        "num_classes and the other overrides; replace_head=True leaves out the published head."
    ]
    lines += [
        f"they have {what}, which bvit does not support."
        for part, what in UNSUPPORTED.items()
        if any(part in source for source in unused)
    ]
    for title, entries in (
        ("arrays without a place in the model", unused),
        ("parameters that no array fills", missing),
        ("arrays of another shape than their parameter", misshapen),
    ):
        if entries:
            lines.append(f"{len(entries)} {title}: {'; '.join(entries)}")
    raise ValueError("\n".join(lines))
