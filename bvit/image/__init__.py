"""Pure functions on images: blur them, measure where they are blurred, mask those parts.

All take any leading batch axes, and work under jit, vmap, grad and shard_map. Prefer a batch axis
to vmap (on a CPU it stays in the cache), and shard_map where it is sharded over devices.
"""

from bvit.image.blur import gaussian_blur, random_gaussian_blur, region_blur
from bvit.image.focus import mask_patches, patch_laplacian_variance, patch_mask
from bvit.image.pixels import check_image, grayscale, normalize, to_float

__all__ = [
    "check_image",
    "gaussian_blur",
    "grayscale",
    "mask_patches",
    "normalize",
    "patch_laplacian_variance",
    "patch_mask",
    "random_gaussian_blur",
    "region_blur",
    "to_float",
]
