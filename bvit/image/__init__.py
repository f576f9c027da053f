"""Pure functions on images: blur them, measure where they are blurred, mask those parts.

All take any leading batch axes, and work under jit, vmap, grad and shard_map. Prefer a batch axis
to vmap (on a CPU it stays in the cache), and shard_map where it is sharded over devices.
"""

from bvit.image import corruptions, deblur
from bvit.image.blur import gaussian_blur, random_gaussian_blur, region_blur
from bvit.image.camera import (
    anisotropic_gaussian_blur,
    box_blur,
    defocus_blur,
    motion_blur,
    random_anisotropic_gaussian_blur,
    random_box_blur,
    random_defocus_blur,
    random_motion_blur,
    random_shake_blur,
)
from bvit.image.color import random_color_jitter
from bvit.image.focus import mask_patches, patch_laplacian_variance, patch_mask
from bvit.image.focus_map import focus_map
from bvit.image.fourier import convolve
from bvit.image.glass import glass_blur, random_glass_blur
from bvit.image.motion import Motion, estimate_motion
from bvit.image.noise import sensor_noise
from bvit.image.pixels import check_image, grayscale, normalize, to_float
from bvit.image.region import region_mask
from bvit.image.sigma import estimate_sigma
from bvit.image.sigma_map import BlurMap, blur_map
from bvit.image.variable import random_variable_gaussian_blur, variable_gaussian_blur
from bvit.image.zoom import random_zoom_blur, zoom_blur

__all__ = [
    "BlurMap",
    "Motion",
    "anisotropic_gaussian_blur",
    "blur_map",
    "box_blur",
    "check_image",
    "convolve",
    "corruptions",
    "deblur",
    "defocus_blur",
    "estimate_motion",
    "estimate_sigma",
    "focus_map",
    "gaussian_blur",
    "glass_blur",
    "grayscale",
    "mask_patches",
    "motion_blur",
    "normalize",
    "patch_laplacian_variance",
    "patch_mask",
    "random_anisotropic_gaussian_blur",
    "random_box_blur",
    "random_color_jitter",
    "random_defocus_blur",
    "random_gaussian_blur",
    "random_glass_blur",
    "random_motion_blur",
    "random_shake_blur",
    "random_variable_gaussian_blur",
    "random_zoom_blur",
    "region_blur",
    "region_mask",
    "sensor_noise",
    "to_float",
    "variable_gaussian_blur",
    "zoom_blur",
]
