"""bvit classifies blurred images without deblurring them, by functions other projects can plug in.

Importing it loads jax, flax and nothing heavier. `bvit.pretrained`, which reads published weights,
loads when it is first used.
"""

import importlib.metadata
from types import ModuleType

from bvit import interrupt

interrupt.end_commands_quietly()  # before what takes seconds to load

from bvit import image, models, tokens  # noqa: E402
from bvit.classify import classify  # noqa: E402
from bvit.image import (  # noqa: E402
    focus_map,
    gaussian_blur,
    mask_patches,
    patch_laplacian_variance,
    patch_mask,
    random_gaussian_blur,
    region_blur,
)

__all__ = [
    "classify",
    "focus_map",
    "gaussian_blur",
    "image",
    "mask_patches",
    "models",
    "patch_laplacian_variance",
    "patch_mask",
    "pretrained",
    "random_gaussian_blur",
    "region_blur",
    "tokens",
]


def __getattr__(name: str) -> ModuleType | str:
    if name == "pretrained":
        return importlib.import_module("bvit.pretrained")
    if name == "__version__":
        return importlib.metadata.version("bvit")
    raise AttributeError(f"module 'bvit' has no attribute {name!r}")
