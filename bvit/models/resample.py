"""A ViT's position and patch embeddings for other image and patch sizes."""

import math

import jax
import numpy as np
from jaxtyping import Float


def resample_positions(
    positions: Float[np.ndarray, "1 t width"], grid: tuple[int, int], *, prefix: int
) -> Float[np.ndarray, "1 t2 width"]:
    """Position embedding of a square grid of patches, resampled for another grid.

    Bicubic (Keys' a = -1/2), antialiased when shrinking, as timm's `resample_abs_pos_embed`.

    Args:
      positions: one embedding for each prefix token, if it has any, then the patches in raster
        order. Prefix tokens without one get zeros, which add nothing.
      grid: rows and columns of patches of the result.
      prefix: tokens before the patches (1 where there is a class token).

    Raises:
      ValueError: the patches are not those of a square.
    """
    count, width = positions.shape[1:]
    if count == prefix + math.prod(grid):
        return positions
    own_prefix = 0 if math.isqrt(count) ** 2 == count else prefix
    side = math.isqrt(count - own_prefix)
    if side**2 != count - own_prefix:
        raise ValueError(
            "a position embedding must be of a square grid of patches to be resampled: got "
            f"{count} positions, which are not {prefix} more than a square."
        )
    patches = positions[:, own_prefix:].reshape(1, side, side, width).astype(np.float32)
    resized = jax.image.resize(patches, (1, *grid, width), "cubic", antialias=True)
    before = positions[:, :own_prefix] if own_prefix else np.zeros((1, prefix, width))
    after = np.asarray(resized).reshape(1, -1, width)
    return np.concatenate([before, after], axis=1, dtype=np.float32)


def resample_patch_kernel(
    kernel: Float[np.ndarray, "p p c width"], patch_size: int
) -> Float[np.ndarray, "q q c width"]:
    """Patch embedding kernel for another patch size, by pseudoinverse of the resize ("PI-resize").

    With B the matrix that resizes a patch (bicubic, antialiased), the new kernel is (Bᵀ)⁺ times the
    old one: a patch that was enlarged by B is embedded as the patch itself was before. B is the
    Kronecker product of one resize for the rows and the same for the columns, and so is (Bᵀ)⁺.

    Reference: Beyer et al. 2023, "FlexiViT: One Model for All Patch Sizes", section 3.4.
    """
    old = kernel.shape[0]
    if old == patch_size:
        return kernel
    resize = jax.image.resize(np.eye(old, dtype=np.float32), (patch_size, old), "cubic")
    inverse = np.linalg.pinv(np.asarray(resize, np.float64).T)
    resampled = np.einsum("ip,jq,pqcw->ijcw", inverse, inverse, kernel, optimize=True)
    return resampled.astype(np.float32)
