"""The classifiers that are compared: one table of names, and `create`."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from functools import partial

import flax.linen as nn

from bvit.image.checks import short
from bvit.models.googlenet import GoogLeNet
from bvit.models.resnet import BasicBlock, Bottleneck, ResNet
from bvit.models.vgg import VGG
from bvit.models.vit import VisionTransformer

__all__ = ["MODELS", "VisionTransformer", "create", "is_vit"]

# Widths and heads of tiny and small: DeiT (Touvron et al. 2021); of base and large: Dosovitskiy et
# al. 2021, table 1.
_tiny = partial(VisionTransformer, width=192, depth=12, num_heads=3)
_small = partial(VisionTransformer, width=384, depth=12, num_heads=6)
_base = partial(VisionTransformer, width=768, depth=12, num_heads=12)
_large = partial(VisionTransformer, width=1024, depth=24, num_heads=16)
# Of timm's "searching for better baselines": registers, the mean over patches, 256 px.
_searched = partial(VisionTransformer, image_size=256, patch_size=16, pool="mean", registers=4)
_little = partial(_searched, width=320, depth=14, num_heads=5, mlp_ratio=5.6)
_medium = partial(_searched, width=512, depth=12, num_heads=8)
_betwixt = partial(_searched, width=640, depth=12, num_heads=10)
# The image towers of CLIP (Radford et al. 2021, arXiv:2103.00020), and those of OpenAI's weights.
_clip = {"pre_norm": True, "norm_epsilon": 1e-5}
_quick_clip = {**_clip, "activation": "quick_gelu"}

# Convolutions in each stage: Simonyan and Zisserman 2015, table 1, columns A, B, D and E.
_vgg11 = partial(VGG, depths=(1, 1, 2, 2, 2))
_vgg13 = partial(VGG, depths=(2, 2, 2, 2, 2))
_vgg16 = partial(VGG, depths=(2, 2, 3, 3, 3))
_vgg19 = partial(VGG, depths=(2, 2, 4, 4, 4))

# Blocks in each stage: He et al. 2016, table 1.
_resnet50 = partial(ResNet, block=Bottleneck, depths=(3, 4, 6, 3))

# With the same weights these give torchvision's and timm's logits. Measured once, on a CPU in
# float32, with random weights and batch statistics (torchvision 0.28.0, timm 1.0.31, torch 2.13.0;
# two random images of 224x224, two of 97x113), the largest difference over the largest logit was:
#   torchvision  ResNets 9e-7, dilated (its convolutions set so) 7e-7, VGGs 3e-6, GoogLeNet 6e-7;
#                in training resnet18 3e-6, vgg11_bn 5e-6, googlenet 2e-5 (auxiliary heads 1e-5)
#   timm         resnet50 8e-7, vgg11 1e-6, vit_tiny_patch16 5e-7, vit_small_patch32 1e-6; resampled
#                for other image and patch sizes 7e-7; from Google's names 1e-6; with registers 8e-7
#                (DINOv2, "little", "medium"); CLIP patch32 and its quickgelu 9e-7; SigLIP base 1e-6
MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(ResNet, block=BasicBlock, depths=(2, 2, 2, 2)),
    "resnet34": partial(ResNet, block=BasicBlock, depths=(3, 4, 6, 3)),
    "resnet50": _resnet50,
    "resnet50_dilated": partial(_resnet50, early_dilation=2),
    "resnet101": partial(ResNet, block=Bottleneck, depths=(3, 4, 23, 3)),
    "resnet152": partial(ResNet, block=Bottleneck, depths=(3, 8, 36, 3)),
    "vgg11": partial(_vgg11, batch_norm=False),
    "vgg11_bn": partial(_vgg11, batch_norm=True),
    "vgg13": partial(_vgg13, batch_norm=False),
    "vgg13_bn": partial(_vgg13, batch_norm=True),
    "vgg16": partial(_vgg16, batch_norm=False),
    "vgg16_bn": partial(_vgg16, batch_norm=True),
    "vgg19": partial(_vgg19, batch_norm=False),
    "vgg19_bn": partial(_vgg19, batch_norm=True),
    "googlenet": partial(GoogLeNet),
    "vit_tiny_patch16_224": partial(_tiny, patch_size=16),
    "vit_tiny_patch32_224": partial(_tiny, patch_size=32),
    "vit_small_patch16_224": partial(_small, patch_size=16),
    "vit_small_patch32_224": partial(_small, patch_size=32),
    "vit_base_patch16_224": partial(_base, patch_size=16),
    "vit_base_patch32_224": partial(_base, patch_size=32),
    "vit_large_patch16_224": partial(_large, patch_size=16),
    "vit_large_patch32_224": partial(_large, patch_size=32),
    # DINOv2's (Oquab et al. 2024, arXiv:2304.07193) under timm's names; made for 518 px there.
    "vit_small_patch14_dinov2": partial(_small, patch_size=14),
    "vit_base_patch14_dinov2": partial(_base, patch_size=14),
    "vit_large_patch14_dinov2": partial(_large, patch_size=14),
    # The same with registers (Darcet et al. 2024, arXiv:2309.16588).
    "vit_small_patch14_reg4_dinov2": partial(_small, patch_size=14, registers=4),
    "vit_base_patch14_reg4_dinov2": partial(_base, patch_size=14, registers=4),
    "vit_large_patch14_reg4_dinov2": partial(_large, patch_size=14, registers=4),
    "vit_little_patch16_reg1_gap_256": partial(_little, registers=1),
    "vit_little_patch16_reg4_gap_256": partial(_little),
    "vit_medium_patch16_reg1_gap_256": partial(_medium, registers=1),
    "vit_medium_patch16_reg4_gap_256": partial(_medium),
    "vit_mediumd_patch16_reg4_gap_256": partial(_medium, depth=20),
    "vit_betwixt_patch16_reg1_gap_256": partial(_betwixt, registers=1),
    "vit_betwixt_patch16_reg4_gap_256": partial(_betwixt),
    "vit_base_patch32_clip_224": partial(_base, patch_size=32, **_clip),
    "vit_base_patch16_clip_224": partial(_base, patch_size=16, **_clip),
    "vit_large_patch14_clip_224": partial(_large, patch_size=14, **_clip),
    "vit_base_patch32_clip_quickgelu_224": partial(_base, patch_size=32, **_quick_clip),
    "vit_base_patch16_clip_quickgelu_224": partial(_base, patch_size=16, **_quick_clip),
    "vit_large_patch14_clip_quickgelu_224": partial(_large, patch_size=14, **_quick_clip),
    # The image towers of SigLIP (Zhai et al. 2023, arXiv:2303.15343).
    "vit_base_patch16_siglip_224": partial(_base, patch_size=16, pool="attention"),
    "vit_large_patch16_siglip_256": partial(
        _large, patch_size=16, pool="attention", image_size=256
    ),
    # The ViTs of Touvron et al. 2021 under timm's names, so that their weights are known by them.
    "deit_tiny_patch16_224": partial(_tiny, patch_size=16),
    "deit_small_patch16_224": partial(_small, patch_size=16),
    "deit_base_patch16_224": partial(_base, patch_size=16),
    "deit_tiny_distilled_patch16_224": partial(_tiny, patch_size=16, distilled=True),
    "deit_small_distilled_patch16_224": partial(_small, patch_size=16, distilled=True),
    "deit_base_distilled_patch16_224": partial(_base, patch_size=16, distilled=True),
}

# For errors: the names are too many for one.
SOME = (
    "bvit.models.MODELS, such as resnet50, vgg19, googlenet, vit_tiny_patch16_224 or "
    "deit_small_patch16_224"
)


def is_vit(name: str) -> bool:
    """Whether a key of `MODELS` is a ViT, which is made for one size of images."""
    return name in MODELS and MODELS[name].func is VisionTransformer


def create(name: str, *, num_classes: int = 1000, **overrides) -> nn.Module:
    """A model by name, not yet initialised.

    Args:
      name: a key of `MODELS`.
      num_classes: logits for each image.
      **overrides: other fields of the module: `dtype` (what it computes in) on every model; for a
        ViT `image_size`, `patch_size`, `width`, `depth`, … (`VisionTransformer` has the list).

    Returns:
      A Linen module: `model.init(key, images, train=False)`, then
      `model.apply(variables, images, train=False)` on normalised images [n, h, w, 3] gives float32
      logits [n, num_classes].

    Raises:
      ValueError: no such model, no such override, or values that do not fit together.
    """
    if name not in MODELS:
        raise ValueError(f"no model is called {short(name)}; {_suggest(name, MODELS, SOME)}")
    constructor = MODELS[name]
    # Linen adds `parent` and `name` to every module; they are not the caller's to set.
    fields = {f.name for f in dataclasses.fields(constructor.func)} - {"parent", "name"}
    for override in overrides:
        if override not in fields:
            every = ", ".join(sorted(fields))
            raise ValueError(
                f"{name} has no option {override!r}; {_suggest(override, fields, every)}"
            )
    return constructor(num_classes=num_classes, **overrides)


def _suggest(wrong: str, names: Iterable[str], otherwise: str) -> str:
    close = difflib.get_close_matches(wrong, names)
    return f"did you mean {' or '.join(close)}?" if close else f"choose from {otherwise}."
