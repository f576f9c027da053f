"""What a ViT does with its patches."""

from collections.abc import Iterable

from jaxtyping import Array, Float


def check_patch_size(image_shape: tuple[int, int], patch_size: int) -> None:
    """Raises ValueError if patches of patch_size×patch_size pixels do not tile an image (h, w)."""
    height, width = image_shape
    if patch_size >= 1 and height % patch_size == 0 and width % patch_size == 0:
        return
    fits = [p for p in range(1, min(height, width) + 1) if height % p == 0 and width % p == 0]
    raise ValueError(
        f"patch_size must divide the image: got image {height}×{width}, patch_size={patch_size}; "
        f"use {_nearest(patch_size, fits)}."
    )


def _nearest(wanted: float, choices: Iterable[int]) -> str:
    """The closest choice on either side: "14 or 16", or one of them where there is no other."""
    below = [c for c in choices if c <= wanted]
    above = [c for c in choices if c >= wanted]
    return " or ".join(str(c) for c in (*below[-1:], *above[:1]))


def patchify(image: Float[Array, "*b h w c"], patch_size: int) -> Float[Array, "*b t pixels"]:
    """Cuts images into patches: [*b, t, p·p·c].

    Patches are in raster order, pixels within a patch in the order (row, column, channel).

    Raises:
      ValueError: the patch size does not divide the image.
    """
    *batch, height, width, channels = image.shape
    check_patch_size((height, width), patch_size)
    rows, columns = height // patch_size, width // patch_size
    grid = image.reshape(*batch, rows, patch_size, columns, patch_size, channels)
    return grid.swapaxes(-4, -3).reshape(*batch, rows * columns, patch_size**2 * channels)
