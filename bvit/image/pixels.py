"""The images that bvit takes, and the conversions from and to them.

Pixels are float in [0, 1], channels last, RGB, with any leading batch axes: [*b, h, w, c].
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, UInt8

from bvit.image.checks import check_array

# Channel means and standard deviations of the ImageNet training set, of pixels in [0, 1]: what the
# published torchvision and timm CNN weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Luma weights of R, G, B (ITU-R BT.601), which cv2.COLOR_RGB2GRAY and Pillow's "L" use too.
LUMA = (0.299, 0.587, 0.114)

GREY_OR_RGB = (1, 3)


def check_image(image: ArrayLike, name: str = "image", channels: int | None = None) -> None:
    """Raises if an array is not an image as bvit wants it; checks dtype and shape alone.

    Args:
      image: what should be [*b, h, w, c], float. Traced values are fine.
      name: what to call it in the error.
      channels: the channels it must have; None takes grey (1) and RGB (3) alike.

    Raises:
      ValueError: it is not floating point, has no axes for height, width and channels, or has
        other channels than wanted.
    """
    check_array(image, name)
    dtype, shape = jnp.result_type(image), np.shape(image)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{name} must be floating point with values in [0, 1]: got {dtype}; convert 8-bit "
            f"pixels with bvit.image.pixels.to_float({name}), which divides by 255."
        )
    if len(shape) < 3:
        raise ValueError(
            f"{name} must be [*batch, height, width, channels]: got shape {shape}; "
            f"give a grey image its channel with {name}[..., None]."
        )
    wanted = GREY_OR_RGB if channels is None else (channels,)
    if shape[-1] not in wanted:
        raise ValueError(
            f"{name} must have {' or '.join(map(str, wanted))} channels, last: got shape {shape}; "
            f"{_channel_fix(name, shape, wanted)}"
        )
    if 0 in shape[-3:-1]:
        raise ValueError(f"{name} has no pixels: got shape {shape}; height and width must be >= 1.")


def _channel_fix(name: str, shape: tuple[int, ...], wanted: Sequence[int]) -> str:
    if shape[-1] == 1 and 3 in wanted:
        return f"repeat the grey channel with jnp.repeat({name}, 3, axis=-1)."
    if shape[-3] in wanted:
        return f"move the channels last with jnp.moveaxis({name}, -3, -1)."
    if shape[-1] == 4:
        return f"drop the alpha channel with {name}[..., :3]."
    return f"a batch of grey images needs a channel axis: {name}[..., None]."


def to_float(image: UInt8[ArrayLike, "*b h w c"]) -> Float[Array, "*b h w c"]:
    """8-bit pixels (0-255) as float32 in [0, 1].

    Raises:
      ValueError: the pixels are not uint8 (16-bit ones need another divisor, float ones none).
    """
    check_array(image, "image")
    dtype = jnp.result_type(image)
    if dtype != jnp.uint8:
        raise ValueError(
            f"to_float takes uint8 pixels (0-255): got {dtype}; float pixels in [0, 1] need no "
            "conversion, and other integers should be scaled by their own maximum."
        )
    return jnp.asarray(image).astype(jnp.float32) / 255.0


def normalize(
    image: Float[ArrayLike, "*b h w c"],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Float[Array, "*b h w c"]:
    """(image - mean) / std for each channel: what the models take. Keeps the image's dtype.

    Args:
      image: [*b, h, w, c] in [0, 1].
      mean: one number for each channel, or a single one for all.
      std: likewise; none may be zero.

    Raises:
      ValueError: not an image, or the number of means or deviations is not that of its channels.
    """
    check_image(image)
    channels = np.shape(image)[-1]
    for name, values in (("mean", mean), ("std", std)):
        if np.size(values) not in (1, channels):
            raise ValueError(
                f"{name} must have one value, or one for each of the {channels} channels: "
                f"got {np.size(values)}."
            )
    image = jnp.asarray(image)
    return (image - jnp.asarray(mean, image.dtype)) / jnp.asarray(std, image.dtype)


def grayscale(image: Float[ArrayLike, "*b h w 3"]) -> Float[Array, "*b h w"]:
    """Luma, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), without a channel axis; keeps the dtype.

    Raises:
      ValueError: not an RGB image.
    """
    check_image(image, channels=3)
    image = jnp.asarray(image)
    red, green, blue = (image[..., channel].astype(jnp.float32) for channel in range(3))
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).astype(image.dtype)
