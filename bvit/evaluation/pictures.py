"""Pictures of what a policy does: the patches that count as blurry, drawn over the photograph."""

from pathlib import Path

import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image

from bvit.image.focus import patch_mask

# Blurry patches are darkened to this share and get a coloured frame; sharp ones stay as they are.
DIMMED = 0.35
FRAME = (1.0, 0.35, 0.1)
# Small pictures are enlarged to at least this side, so that a 64 px crop can be looked at.
MIN_SIDE = 192
# White pixels between pictures.
GAP = 4


def draw_mask(
    image: Float[np.ndarray, "h w 3"], keep: Bool[np.ndarray, "hp wp"]
) -> Float[np.ndarray, "h2 w2 3"]:
    """Draws a patch mask over a picture in [0, 1]: removed patches dark, with a frame."""
    zoom = max(1, -(-MIN_SIDE // image.shape[0]))
    image = image.repeat(zoom, axis=0).repeat(zoom, axis=1).astype(np.float32)
    patch = image.shape[0] // keep.shape[0]
    removed = ~keep.repeat(patch, axis=0).repeat(patch, axis=1)
    drawn = np.where(removed[..., None], image * DIMMED, image)
    rows, columns = np.indices(removed.shape)
    edge = (rows % patch == 0) | (columns % patch == 0)
    drawn[removed & edge] = FRAME
    return drawn


def mask_sheet(
    image: Float[Array, "n h w 3"], *, patch_size: int, threshold: float
) -> UInt8[np.ndarray, "H W 3"]:
    """Pictures in a row, and under each the patches that count as blurry."""
    keep = np.asarray(patch_mask(image, patch_size=patch_size, threshold=threshold))
    plain = [draw_mask(x, np.ones_like(k)) for x, k in zip(np.asarray(image), keep, strict=True)]
    masked = [draw_mask(x, k) for x, k in zip(np.asarray(image), keep, strict=True)]
    framed = [
        [np.pad(x, [(GAP, 0), (GAP, 0), (0, 0)], constant_values=1) for x in row]
        for row in (plain, masked)
    ]
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in framed])
    return np.round(np.clip(sheet, 0, 1) * 255).astype(np.uint8)


def save(image: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    """Writes a picture as PNG."""
    Image.fromarray(image).save(path)
