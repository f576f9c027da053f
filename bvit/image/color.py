"""Random changes of colour, the usual augmentation in training, by dm-pix."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from bvit.image.batching import Keys, image_keys, map_images
from bvit.image.checks import check_range, short
from bvit.image.pixels import check_image

# The strengths of `random_color_jitter` in their order, each with the largest that makes sense.
MAX_STRENGTHS = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5}


def random_color_jitter(
    key: Keys,
    image: Float[ArrayLike, "*b h w 3"],
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    probability: float = 1.0,
) -> Float[Array, "*b h w 3"]:
    """Changes brightness, contrast, saturation and hue of each image, in this order, at random.

    Each change is drawn uniformly for each image, and its result clipped to [0, 1]. A strength of 0
    leaves its change out: with four of them an image stays exactly as it is.

    Args:
      key: one PRNG key, or one for each image, as in `random_gaussian_blur`.
      image: RGB in [0, 1], any leading batch axes.
      brightness: the most that is added to all pixels, or subtracted, in [0, 1]; static.
      contrast: c in [0, 1]; the distance of each channel to its mean is multiplied by 1 - c to
        1 + c; static.
      saturation: s in [0, 1]; the saturation (of HSV) is multiplied by 1 - s to 1 + s; static.
      hue: the largest turn of the hue, either way, as a share of the circle in [0, 0.5]; static.
      probability: with which each image is changed; otherwise it is left exactly as it is.

    Returns:
      Images of the shape and dtype of `image`, in [0, 1].

    Raises:
      ValueError: not an RGB image; a strength or a probability outside its range; keys that are
        neither one nor one for each image.
    """
    check_image(image, channels=3)
    strengths = (brightness, contrast, saturation, hue)
    for strength, (name, highest) in zip(strengths, MAX_STRENGTHS.items(), strict=True):
        if not 0 <= strength <= highest:
            raise ValueError(
                f"{name} must be within 0 (off) and {highest:g}: got {short(strength)}."
            )
    check_range("probability", (probability, probability), highest=1.0)
    keys = image_keys(key, np.shape(image)[:-3])
    return _jitter(keys, image, probability, strengths=strengths)


@partial(jax.jit, static_argnames="strengths")
def _jitter(
    keys: Array,
    image: Array,
    probability: ArrayLike,
    *,
    strengths: tuple[float, float, float, float],
) -> Array:
    import dm_pix  # here, since nothing else needs it

    brightness, contrast, saturation, hue = strengths
    changes = (
        partial(dm_pix.random_brightness, max_delta=brightness),
        partial(dm_pix.random_contrast, lower=1 - contrast, upper=1 + contrast),
        partial(dm_pix.random_saturation, lower=1 - saturation, upper=1 + saturation),
        partial(dm_pix.random_hue, max_delta=hue),
    )

    def jitter(one: Array, key: Array) -> Array:
        x = one.astype(jnp.promote_types(one.dtype, jnp.float32))
        *change_keys, coin_key = jax.random.split(key, len(changes) + 1)
        for strength, change, change_key in zip(strengths, changes, change_keys, strict=True):
            if strength:
                x = jnp.clip(change(change_key, x), 0, 1)
        chosen = jax.random.uniform(coin_key) < probability
        return jnp.where(chosen, x.astype(one.dtype), one)

    return map_images(jitter, image, keys)
