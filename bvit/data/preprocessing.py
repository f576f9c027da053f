"""How images are prepared for a network, by the names of its weights or by timm's config.json.

The decoder and its packages load when an image is prepared: converting weights needs neither.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD

# How far the short side shrinks before the centre crop: to 256 for 224, as for ImageNet since
# Krizhevsky et al. 2012.
RESIZE_RATIO = 256 / 224

HALF = (0.5, 0.5, 0.5)
# Radford et al. 2021, CLIP, as in its code.
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

Pixels = UInt8[np.ndarray, "_height _width 3"]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a network.

    Attributes:
      image_size: side of the central square that is cut out, in pixels.
      short_side: of the image before that, in pixels.
      interpolation: of the resizing, as in `bvit.data.decode.center_crop`.
      mean: of each channel in [0, 1]; `bvit.classify` subtracts it.
      std: of each channel in [0, 1]; `bvit.classify` divides by it.
    """

    image_size: int
    short_side: int
    interpolation: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, *images: str | Path | bytes | Pixels) -> Float[np.ndarray, "n s s 3"]:
        """Prepares images for `bvit.classify`, which normalises them by `mean` and `std`.

        Args:
          *images: paths, the bytes of files, or uint8 RGB pixels [h, w, 3].

        Returns:
          A batch of RGB pixels in [0, 1], float32.

        Raises:
          UnreadableImageError: an image can't be decoded.
          OSError: a file can't be read.
          ValueError: pixels that are not uint8 RGB.
        """
        return np.stack([self.crop(_read(image)) for image in images]).astype(np.float32) / 255

    def crop(self, image: bytes | Pixels) -> UInt8[np.ndarray, "s s 3"]:
        """The central square of one image, at the network's size."""
        from bvit.data.decode import center_crop

        return center_crop(
            image,
            size=self.image_size,
            short_side=self.short_side,
            interpolation=self.interpolation,
        )

    def box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Where in an image the crop comes from: top, left, height and width in its pixels."""
        scale = min(height, width) / self.short_side
        side = self.image_size * scale
        return (height - side) / 2, (width - side) / 2, side, side


def _read(image: str | Path | bytes | Pixels) -> bytes | Pixels:
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if isinstance(image, bytes):
        return image
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(
            f"an image must be uint8 RGB, [h, w, 3]: got {pixels.dtype} {pixels.shape}; give its "
            "path or the bytes of its file, or convert it with np.asarray(image.convert('RGB'))."
        )
    return pixels


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a family of weights is evaluated with.

    Attributes:
      crop: the side of the crop as a share of the short side, timm's `crop_pct`.
      interpolation: of the resizing.
      mean: of each channel, subtracted.
      std: of each channel, divided by.
    """

    crop: float
    interpolation: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def at(self, image_size: int) -> Preprocessing:
        """The preparation for a size of the network, rounded as timm rounds."""
        short_side = math.floor(image_size / self.crop)
        return Preprocessing(image_size, short_side, self.interpolation, self.mean, self.std)


# The recipe of the first pattern that is found in "model weights", the names of both. From the
# `default_cfgs` of timm 1.0 in the file that is named, and torchvision 0.28's `transforms` of each
# weights enum.
RECIPES: tuple[tuple[str, Recipe], ...] = (
    # timm deit.py; at 384 px it takes the whole side.
    (r"deit\w*_384", Recipe(1.0, "bicubic")),
    (r"deit", Recipe(0.9, "bicubic")),
    # timm vision_transformer.py: self-supervised by Facebook; CLIP; MIIL; "searching for better
    # baselines" and others without a class token; AugReg, SAM, SigLIP and the first ViTs.
    (r"dinov[23]", Recipe(1.0, "bicubic")),
    (r"vit_\w+\.(dino|mae)", Recipe(0.9, "bicubic")),
    (r"patch14_clip\w+\.laion2b", Recipe(1.0, "bicubic", HALF, HALF)),
    (r"patch14_clip|clip\w*_(336|384|448)", Recipe(1.0, "bicubic", *CLIP)),
    (r"clip", Recipe(0.9, "bicubic", *CLIP)),
    (r"_miil\.", Recipe(0.875, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
    (r"_384 \S*\.sbb", Recipe(1.0, "bicubic", HALF, HALF)),
    (r"\.(sbb|sw)", Recipe(0.95, "bicubic", HALF, HALF)),
    (r"siglip", Recipe(0.9, "bicubic", HALF, HALF)),
    (r"vit_\w+_384", Recipe(1.0, "bicubic", HALF, HALF)),
    (r"vit_", Recipe(0.9, "bicubic", HALF, HALF)),
    # torchvision resnet.py: IMAGENET1K_V2, by the hashes in the names of its files; timm's tv2.
    (r"tv2_in1k|-(11ad3fa6|cd907fc2|f82ba261)", Recipe(224 / 232, "bilinear")),
    # timm resnet.py: "ResNet strikes back" (a, b, c, d) and the others that timm trained.
    (r"resnet50\.a1h_in1k", Recipe(0.9, "bicubic")),
    (r"\.(a\dh?|b\dk|c\d|d)_in1k", Recipe(0.95, "bicubic")),
    (r"\.ra4_e3600", Recipe(0.9, "bicubic", HALF, HALF)),
    (r"\.(am|bt|gluon|ra|ram)_in1k", Recipe(0.875, "bicubic")),
    # torchvision resnet.py, vgg.py, googlenet.py: IMAGENET1K_V1.
    (r"", Recipe(0.875, "bilinear")),
)


def by_name(model: str, weights: str, image_size: int) -> Preprocessing:
    """The preparation that the names of a model and of its weights stand for.

    Args:
      model: its name.
      weights: the name of their file or repository.
      image_size: of the network, in pixels.
    """
    name = f"{model} {weights}"
    return next(recipe for pattern, recipe in RECIPES if re.search(pattern, name)).at(image_size)


def from_timm(settings: Mapping[str, Any]) -> Preprocessing:
    """The preparation that the config.json of a repository of timm's names.

    Args:
      settings: its "pretrained_cfg".

    Raises:
      ValueError: something in it is not supported.
    """
    try:
        mode, interpolation = settings.get("crop_mode", "center"), settings["interpolation"]
        recipe = Recipe(
            settings["crop_pct"], interpolation, tuple(settings["mean"]), tuple(settings["std"])
        )
        found = recipe.at(settings["input_size"][-1])
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"the config.json of these weights is not timm's ({error!r}).") from error
    from bvit.data.decode import INTERPOLATIONS

    if mode != "center" or interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"these weights want images with crop_mode {mode} and interpolation {interpolation}: "
            f"only center with {' or '.join(INTERPOLATIONS)} is supported."
        )
    return found
