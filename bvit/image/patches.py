"""An image as a grid of square patches."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, Shaped

from bvit.image.checks import short


def check_patch_size(image_shape: tuple[int, int], patch_size: int) -> None:
    """Raises ValueError if patches of patch_size×patch_size pixels do not tile an image (h, w)."""
    if not isinstance(patch_size, int | np.integer):
        raise ValueError(f"patch_size must be a whole number: got {short(patch_size)}; use 16.")
    height, width = image_shape
    if patch_size >= 1 and height % patch_size == 0 and width % patch_size == 0:
        return
    fitting = [p for p in range(1, min(height, width) + 1) if height % p == width % p == 0]
    raise ValueError(
        f"patch_size must divide the image: got image {height}×{width}, patch_size={patch_size}; "
        f"use {nearest(patch_size, fitting)}."
    )


def nearest(wanted: float, choices: Sequence[int]) -> str:
    """The closest choice on either side, for an error's fix: "14 or 16"; choices ascend."""
    below = [choice for choice in choices if choice <= wanted]
    above = [choice for choice in choices if choice > wanted]
    return " or ".join(str(choice) for choice in (*below[-1:], *above[:1]))


def patchify(image: Float[Array, "*b h w c"], patch_size: int) -> Float[Array, "*b t pixels"]:
    """Cuts images into patches: [*b, t, p·p·c].

    Patches are in raster order, the values within a patch in the order (row, column, channel).

    Raises:
      ValueError: the patch size does not divide the image.
    """
    *batch, height, width, channels = image.shape
    check_patch_size((height, width), patch_size)
    rows, columns = height // patch_size, width // patch_size
    grid = image.reshape(*batch, rows, patch_size, columns, patch_size, channels)
    return grid.swapaxes(-4, -3).reshape(*batch, rows * columns, patch_size**2 * channels)


def block_values(
    x: Shaped[Array, "*b h w"], side: int
) -> Shaped[Array, "*b h//{side} w//{side} values"]:
    """The values of each block of side×side; rows and columns that fill no block are dropped."""
    *batch, height, width = x.shape
    rows, columns = height // side, width // side
    x = x[..., : rows * side, : columns * side].reshape(*batch, rows, side, columns, side)
    return x.swapaxes(-3, -2).reshape(*batch, rows, columns, side**2)


def halve(image: Float[Array, "*b h w c"]) -> Float[Array, "*b h//2 w//2 c"]:
    """Averages blocks of 2×2 pixels; an odd last row or column is dropped."""
    height, width = (side // 2 * 2 for side in image.shape[-3:-1])
    even = image[..., :height, :width, :]
    # Four strided slices: on a CPU half the time of a reshape and a mean over two axes.
    a, b, c, d = (even[..., i::2, j::2, :] for i in (0, 1) for j in (0, 1))
    return (a + b + c + d) / 4
