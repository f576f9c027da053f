"""Named blur conditions: what is done to a picture before a model sees it.

Training and evaluation read the same table, so that “blur” means one thing. A mixture such as
"sharp+blur" draws one of its parts for each image with equal chance; "mix" is the paper's name for
that one. "gaussian:2.5" blurs every image with that σ.
"""

import difflib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bvit.image.blur import gaussian_blur, random_gaussian_blur, region_blur

Pixels = Float[Array, "n h w c"]

# The paper's section 4.1: a 19×19 kernel, σ drawn from U(1, 2) for each image.
PAPER_SIGMA_RANGE = (1.0, 2.0)
PAPER_KERNEL_SIZE = 19


def _sharp(keys: Array, image: Pixels) -> Pixels:
    del keys
    return image


def _blur(keys: Array, image: Pixels) -> Pixels:
    return random_gaussian_blur(
        keys, image, sigma_range=PAPER_SIGMA_RANGE, kernel_size=PAPER_KERNEL_SIZE
    )


def _gaussian(sigma: float) -> Callable[[Array, Pixels], Pixels]:
    def blur(keys: Array, image: Pixels) -> Pixels:
        del keys
        return gaussian_blur(image, sigma, kernel_size=PAPER_KERNEL_SIZE)

    return blur


CONDITIONS: dict[str, Callable[[Array, Pixels], Pixels]] = {
    "sharp": _sharp,
    "blur": _blur,
    "region": region_blur,
}
MIXTURES = {"mix": "sharp+blur"}


def parts(name: str) -> tuple[Callable[[Array, Pixels], Pixels], ...]:
    """The functions (keys, image) → image that a condition is a mixture of, mostly one.

    Raises:
      ValueError: for an unknown name; it suggests the nearest.
    """
    return tuple(_part(part, name) for part in MIXTURES.get(name, name).split("+"))


def _part(part: str, whole: str) -> Callable[[Array, Pixels], Pixels]:
    kind, colon, sigma = part.partition(":")
    if kind == "gaussian" and colon:
        try:
            value = float(sigma)
        except ValueError:
            value = -1.0
        if value < 0:
            raise ValueError(f"gaussian takes a sigma of 0 or more, as gaussian:2.5: got {part!r}.")
        return _gaussian(value)
    if part in CONDITIONS:
        return CONDITIONS[part]
    known = [*CONDITIONS, *MIXTURES, "gaussian:SIGMA"]
    near = difflib.get_close_matches(part, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "join several with '+'."
    raise ValueError(f"condition must be one of {', '.join(known)}: got {whole!r}; {hint}")


def indexed_keys(key: Array, index: Int[Array, " n"]) -> Array:
    """One PRNG key for each image, from its index: the same whatever batch the image is in."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def apply_condition(name: str, keys: Array, image: Pixels) -> Pixels:
    """Applies a named condition to a batch.

    Args:
      name: a key of `CONDITIONS` or `MIXTURES`, "gaussian:SIGMA", or several joined by "+". Static.
      keys: one PRNG key for each image, [n]; what happens to an image depends on its key alone.
      image: pixels in [0, 1].

    Returns:
      The pictures after it, of the same shape and dtype.

    Raises:
      ValueError: for an unknown name.
    """
    functions = parts(name)
    if len(functions) == 1:
        return functions[0](keys, image)
    both = jax.vmap(jax.random.split)(keys)
    choice = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(functions)))(both[:, 0])
    result = image
    for i, function in enumerate(functions):
        chosen = (choice == i)[:, None, None, None]
        result = jnp.where(chosen, function(both[:, 1], image), result)
    return result
