"""Checks of options, before anything compiles.

The values of JAX arrays pass unchecked: traced ones have none yet, and to read the others the host
would have to wait for the device.
"""

import difflib
import math
import warnings
from collections.abc import Iterable

import jax
import numpy as np
from jaxtyping import ArrayLike

# How an image continues beyond its border: mirrored without repeating the edge pixel, by repeating
# it, or black.
BORDERS = ("reflect", "edge", "constant")

# An error shows so much of a value.
MOST_SHOWN = 80


def short(value: object) -> str:
    """A value as Python writes it, in one line, cut short if it is long."""
    if isinstance(value, list | tuple) and len(value) > MOST_SHOWN:
        return f"a {type(value).__name__} of {len(value):,}"
    text = " ".join(repr(value).split())
    if len(text) <= MOST_SHOWN:
        return text
    return f"{text[:MOST_SHOWN]}… ({len(text):,} characters)"


def check_array(value: object, name: str) -> None:
    """Raises ValueError if a value is a list or anything else that has no dtype."""
    if not hasattr(value, "dtype") and not isinstance(value, int | float | complex):
        raise ValueError(
            f"{name} must be an array: got {type(value).__name__}; convert it with "
            f"numpy.asarray({name})."
        )


def check_name(what: str, name: str, names: Iterable[str]) -> None:
    """Raises ValueError, with a suggestion, if `name` is not one of the names of `what`."""
    if name in names:
        return
    close = difflib.get_close_matches(str(name)[:MOST_SHOWN], names)
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(names)}."
    raise ValueError(f"no {what} is called {short(name)}; {hint}")


def check_kernel_size(kernel_size: int, shape: tuple[int, ...], border: str = "reflect") -> None:
    """Raises ValueError for an even kernel, or one too large to mirror the image [..., h, w, c]."""
    check_odd(kernel_size)
    check_name("border mode", border, BORDERS)
    height, width = shape[-3:-1]
    if border == "reflect" and kernel_size // 2 >= min(height, width):
        raise ValueError(
            f"the blur mirrors kernel_size // 2 = {kernel_size // 2} pixels at each border, and so "
            f"needs an image of at least one more: got image {height}x{width}, "
            f"kernel_size={kernel_size}; use at most {2 * min(height, width) - 1}."
        )


def gaussian_kernel_size(kernel_size: int | None, sigma: ArrayLike) -> int:
    """The size that is given, or for None the least odd one that reaches to 3 sigma on each side.

    Warns if a given kernel ends before 2 sigma. A sigma on a device is only read for None.

    Raises:
      ValueError: None with a sigma that is traced or not finite.
    """
    if kernel_size is None:
        if isinstance(sigma, jax.core.Tracer):
            raise ValueError(
                "kernel_size=None chooses the size by sigma, which is traced here: got "
                f"{short(sigma)}; give a kernel_size of about 6 times the largest sigma."
            )
        largest = np.max(np.asarray(sigma), initial=0)
        if not np.isfinite(largest):
            raise ValueError(
                f"kernel_size=None fits sigma, which must be finite: got {short(sigma)}."
            )
        return 2 * math.ceil(3 * largest) + 1
    check_odd(kernel_size)
    if not isinstance(sigma, jax.Array) and kernel_size // 2 < 2 * np.max(sigma, initial=0):
        warnings.warn(
            f"a kernel of {kernel_size} taps ends before 2 sigma for a sigma of "
            f"{np.max(sigma):g}, so it blurs less; use kernel_size=None, which fits it to sigma.",
            stacklevel=3,
        )
    return kernel_size


def check_odd(kernel_size: int) -> None:
    """Raises ValueError if a kernel has no middle pixel."""
    if not isinstance(kernel_size, (int, np.integer)) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size must be an odd integer >= 1: got {short(kernel_size)}; use for example "
            "19."
        )


def check_strength(
    name: str, value: ArrayLike, batch: tuple[int, ...], *, highest: float = math.inf
) -> None:
    """Raises ValueError if a blur's strength is not one number, or one an image, in [0, highest].

    0 is the strength that leaves an image as it is; `highest` is what the kernel has room for.
    """
    check_one_each(name, value, batch)
    if isinstance(value, jax.Array):
        return
    if not np.all(np.asarray(value) >= 0):
        raise ValueError(f"{name} must be >= 0 (0 leaves the image as it is): got {short(value)}.")
    if not np.all(np.asarray(value) <= highest):
        raise ValueError(
            f"{name} must be at most {highest}, or it leaves the kernel: got {short(value)}; raise "
            "kernel_size."
        )


def check_one_each(name: str, value: ArrayLike, batch: tuple[int, ...]) -> None:
    """Raises ValueError if a parameter is neither one number nor one for each image."""
    if np.shape(value) not in ((), batch):
        raise ValueError(
            f"{name} must be one number, or one for each image: got shape {np.shape(value)} for "
            f"images of batch shape {batch}."
        )


def check_range(
    name: str, bounds: tuple[float, float], *, lowest: float = 0.0, highest: float = math.inf
) -> None:
    """Raises ValueError if (low, high) is not in order and within lowest and highest."""
    low, high = bounds
    if isinstance(low, jax.core.Tracer) or isinstance(high, jax.core.Tracer):
        return
    if not lowest <= low <= high <= highest:
        raise ValueError(
            f"{name} must be within {lowest:g} and {highest:g}, the lower bound first: "
            f"got {short(bounds)}."
        )
