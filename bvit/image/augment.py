"""RandAugment: a few random changes of geometry and colour for each image, by dm-pix.

Cubuk, Zoph, Shlens and Le 2020, arXiv:1909.13719. Two of the paper's fourteen operations are left
out: `sharpness`, since it would undo or imitate the blur that a model learns here, and `equalize`.
"""

import math
from collections.abc import Callable
from functools import partial

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from bvit.image.batching import Keys, image_keys, map_images
from bvit.image.checks import short
from bvit.image.pixels import check_image

MOST_OPERATIONS = 16
# The largest changes, of magnitude 1, as in torchvision's RandAugment: tangent of the shear, shift
# as a share of the side, turn in radians, change of a factor, and bits that are cut off.
SHEAR, SHIFT, TURN, FACTOR, BITS = 0.3, 150 / 331, math.radians(30), 0.9, 4

# A signed strength in [-1, 1] and an image [h, w, 3] → the image, perhaps out of [0, 1].
Operation = Callable[[Array, Array], Array]


def _affine(
    matrix: Callable[[Array], list[list[Array | float]]], strength: Array, x: Array
) -> Array:
    """Moves the pixels about the middle of the image; what comes from outside is black."""
    linear, shift = jnp.split(jnp.array(matrix(strength), x.dtype), [2], axis=1)
    size = jnp.array(x.shape[:2], x.dtype)
    middle = (size - 1) / 2
    offset = middle - linear @ middle + shift[:, 0] * size
    full = jnp.eye(3, dtype=x.dtype).at[:2, :2].set(linear)
    return dm_pix.affine_transform(
        x, full, offset=jnp.append(offset, 0.0), order=1, mode="constant"
    )


def _turned(strength: Array) -> list[list[Array | float]]:
    cosine, sine = jnp.cos(TURN * strength), jnp.sin(TURN * strength)
    return [[cosine, sine, 0.0], [-sine, cosine, 0.0]]


def _stretched(strength: Array, x: Array) -> Array:
    del strength
    low, high = x.min((0, 1)), x.max((0, 1))
    return jnp.where(high > low, (x - low) / jnp.where(high > low, high - low, 1.0), x)


def _posterized(strength: Array, x: Array) -> Array:
    step = 2.0 ** jnp.round(BITS * jnp.abs(strength))
    return jnp.floor(x * 255 / step) * step / 255


OPERATIONS: dict[str, Operation] = {
    "identity": lambda s, x: x,
    "shear_x": partial(_affine, lambda s: [[1.0, 0.0, 0.0], [SHEAR * s, 1.0, 0.0]]),
    "shear_y": partial(_affine, lambda s: [[1.0, SHEAR * s, 0.0], [0.0, 1.0, 0.0]]),
    "translate_x": partial(_affine, lambda s: [[1.0, 0.0, 0.0], [0.0, 1.0, SHIFT * s]]),
    "translate_y": partial(_affine, lambda s: [[1.0, 0.0, SHIFT * s], [0.0, 1.0, 0.0]]),
    "rotate": partial(_affine, _turned),
    "brightness": lambda s, x: x * (1 + FACTOR * s),
    "contrast": lambda s, x: dm_pix.adjust_contrast(x, 1 + FACTOR * s),
    "color": lambda s, x: dm_pix.adjust_saturation(x, 1 + FACTOR * s),
    "posterize": _posterized,
    "solarize": lambda s, x: dm_pix.solarize(x, 1 - jnp.abs(s)),
    "autocontrast": _stretched,
}


def random_augment(
    key: Keys, image: Float[ArrayLike, "*b h w 3"], *, operations: int = 2, magnitude: float = 0.3
) -> Float[Array, "*b h w 3"]:
    """Changes each image by some of `OPERATIONS`, drawn with replacement, in the order drawn.

    Args:
      key: one PRNG key, or one for each image, as in `random_gaussian_blur`.
      image: RGB in [0, 1], any leading batch axes.
      operations: how many are applied to each image; static.
      magnitude: how strong each is, in [0, 1]; half of them go the other way; static. The paper's
        magnitude 9 of 30 is 0.3.

    Returns:
      Images of the shape and dtype of `image`, in [0, 1]; moved geometry leaves black borders.

    Raises:
      ValueError: not an RGB image; an argument out of its range; keys that are neither one nor one
        for each image.
    """
    check_image(image, channels=3)
    if not (0 <= magnitude <= 1 and 0 <= operations <= MOST_OPERATIONS):
        raise ValueError(
            f"magnitude must be within 0 and 1 and operations within 0 and {MOST_OPERATIONS}: got "
            f"{short(magnitude)} and {short(operations)}."
        )
    keys = image_keys(key, np.shape(image)[:-3])
    return _augment(keys, image, operations=operations, magnitude=magnitude)


@partial(jax.jit, static_argnames=("operations", "magnitude"))
def _augment(keys: Array, image: Array, *, operations: int, magnitude: float) -> Array:
    def augment(one: Array, key: Array) -> Array:
        x = one.astype(jnp.promote_types(one.dtype, jnp.float32))
        for draw in jax.random.split(key, operations):
            which, sign = jax.random.split(draw)
            strength = magnitude * jax.random.rademacher(sign, (), x.dtype)
            place = jax.random.randint(which, (), 0, len(OPERATIONS))
            # A batch computes all operations anyway: of each image, one is kept.
            changed = x
            for i, operation in enumerate(OPERATIONS.values()):
                changed = jnp.where(place == i, operation(strength, x), changed)
            x = jnp.clip(changed, 0, 1)
        return x.astype(one.dtype)

    return map_images(augment, image, keys)
