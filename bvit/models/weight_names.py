"""Names of arrays in torchvision, timm and Google's ViTs, translated to bvit's.

bvit's modules carry torchvision's and timm's names, so little is left to translate. A name in bvit
is the path of a leaf in the variables, such as "params/layer1_0/conv1/kernel".
"""

import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

# PyTorch's names for a leaf. A "weight" is a kernel, or a scale where it has one axis.
TORCH_LEAVES = {
    "bias": "params/{}/bias",
    "gamma": "params/{}/gamma",
    "latent": "params/{}/latent",
    "running_mean": "batch_stats/{}/mean",
    "running_var": "batch_stats/{}/var",
}

# Counts the batches seen; used by PyTorch where a batch norm has no momentum, and nowhere here.
TORCH_COUNTER = "num_batches_tracked"

# timm's names that differ from bvit's, which are torchvision's for VGG. timm's `fc_norm` is the
# final norm of a ViT that averages its tokens.
TIMM_MODULES = {
    "patch_embed.proj": "patch_embed",
    "fc_norm": "norm",
    "pre_logits.fc1": "classifier.0",
    "pre_logits.fc2": "classifier.3",
    "head.fc": "classifier.6",
}

# Checkpoints of Google's hold parameters under one of these, beside the state of the optimiser.
GOOGLE_ROOTS = ("params/", "opt/target/")

# Roots of bvit's own variables; Google's checkpoints with such a root always have GOOGLE_MODULE.
OWN_ROOTS = ("params/", "batch_stats/")
GOOGLE_MODULE = "params/Transformer/"

# Google's ViTs: vision_transformer's names (the AugReg files) and big_vision's differ in numbers.
_BLOCK = r"Transformer/encoderblock_(\d+)"
GOOGLE_PATTERNS = {
    r"cls": r"cls_token",
    r"(?:Transformer/posembed_input/)?pos_embedding": r"pos_embed",
    r"embedding/(\w+)": r"patch_embed/\1",
    rf"{_BLOCK}/LayerNorm_0/(\w+)": r"blocks_\1/norm1/\2",
    rf"{_BLOCK}/MultiHeadDotProductAttention_[01]/(query|key|value|out)/(\w+)": (
        r"blocks_\1/attn/\2/\3"
    ),
    rf"{_BLOCK}/LayerNorm_[12]/(\w+)": r"blocks_\1/norm2/\2",
    rf"{_BLOCK}/MlpBlock_[03]/Dense_0/(\w+)": r"blocks_\1/mlp/fc1/\2",
    rf"{_BLOCK}/MlpBlock_[03]/Dense_1/(\w+)": r"blocks_\1/mlp/fc2/\2",
    r"Transformer/encoder_norm/(\w+)": r"norm/\1",
    r"head/(\w+)": r"head/\1",
}


def to_paths(state_dict: Mapping[str, np.ndarray]) -> dict[str, tuple[str, np.ndarray]]:
    """Published arrays by their path in bvit's variables, the axes of kernels in Flax's order.

    Unknown names become paths that no model has.

    Args:
      state_dict: published names to arrays: bvit's own paths; otherwise Google's if one has a
        slash, PyTorch's if not.

    Returns:
      Path to published name and array. The query, key and value that Google keeps apart become one
      "qkv"; a kernel of PyTorch's attention has heads and their features still on one axis.
    """
    if _is_own(state_dict):
        return {name: (name, array) for name, array in state_dict.items()}
    if any("/" in name for name in state_dict):
        return _from_google(state_dict)
    return dict(
        _from_torch(name, array)
        for name, array in state_dict.items()
        if not name.endswith(TORCH_COUNTER)
    )


def _is_own(names: Iterable[str]) -> bool:
    return all(name.startswith(OWN_ROOTS) and not name.startswith(GOOGLE_MODULE) for name in names)


def _from_torch(name: str, array: np.ndarray) -> tuple[str, tuple[str, np.ndarray]]:
    module, _, leaf = name.rpartition(".")
    module = TIMM_MODULES.get(module, module)
    if module.startswith("classifier") and array.ndim == 4:
        array = array.reshape(len(array), -1)  # timm's VGG has convolutions for linear layers
    module = re.sub(r"\.(\d+)", r"_\1", module).replace(".", "/")
    if leaf in TORCH_LEAVES:
        return TORCH_LEAVES[leaf].format(module), (name, array)
    if leaf != "weight":
        return f"params/{name}", (name, array)
    if array.ndim == 1:
        return f"params/{module}/scale", (name, array)
    # From (out, in, height, width) or (out, in).
    axes = (2, 3, 1, 0) if array.ndim == 4 else None
    return f"params/{module}/kernel", (name, array.transpose(axes))


def _from_google(state_dict: Mapping[str, np.ndarray]) -> dict[str, tuple[str, np.ndarray]]:
    for root in GOOGLE_ROOTS:
        if any(name.startswith(root) for name in state_dict):
            state_dict = {
                name.removeprefix(root): array
                for name, array in state_dict.items()
                if name.startswith(root)
            }
    paths = {
        f"params/{_google_path(name)}": (name, array) for name, array in _unstacked(state_dict)
    }
    return _with_joined_qkv(paths)


def _unstacked(state_dict: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """One name for each block, where big_vision has stacked the blocks along a leading axis."""
    for name, array in state_dict.items():
        if "/encoderblock/" not in name:
            yield name, array
            continue
        for i, of_block in enumerate(array):
            yield name.replace("/encoderblock/", f"/encoderblock_{i}/"), of_block


def _google_path(name: str) -> str:
    for pattern, path in GOOGLE_PATTERNS.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(path).replace("/attn/out/", "/attn/proj/")
    return name


def _with_joined_qkv(
    paths: dict[str, tuple[str, np.ndarray]],
) -> dict[str, tuple[str, np.ndarray]]:
    joined = dict(paths)
    for query in [path for path in paths if "/attn/query/" in path]:
        parts = [query.replace("query", part) for part in ("query", "key", "value")]
        if all(part in paths for part in parts):
            names, arrays = zip(*(joined.pop(part) for part in parts), strict=True)
            # Kernels are [width, heads, features], biases [heads, features].
            joined[query.replace("query", "qkv")] = (", ".join(names), np.stack(arrays, axis=-3))
    return joined
