"""A classifier that sees no structure: its accuracy is stated beside a model's."""

import numpy as np
from jaxtyping import Int, UInt8

# 32 levels for each channel: Swain & Ballard 1991, "Color indexing", compare histograms alike.
BINS = 32


def histogram_nearest_neighbour(
    train_images: UInt8[np.ndarray, "n h w c"],
    train_labels: Int[np.ndarray, " n"],
    test_images: UInt8[np.ndarray, "m h2 w2 c"],
) -> Int[np.ndarray, " m"]:
    """Gives each test image the label of the training image with the most similar histograms.

    The histograms are those of the channels, 32 bins each, as shares of the pixels; images are
    compared by the sum of absolute differences, which is 2 c minus twice Swain and Ballard's
    histogram intersection. The places of pixels don't matter, so image sizes may differ.

    Args:
      train_images: uint8, 0–255; at least one.
      train_labels: of the training images.
      test_images: uint8, 0–255.

    Returns:
      The predicted labels; the first one's of equally similar images.

    Raises:
      ValueError: images that are not uint8 or not of four axes, no training image, other channels
        in testing than in training, or another number of labels than of training images.
    """
    for name, images in (("train_images", train_images), ("test_images", test_images)):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(
                f"{name} must be uint8 of shape [n, h, w, c]: got {images.dtype} of shape "
                f"{images.shape}; multiply float images by 255 and cast them."
            )
    if not len(train_images) or len(train_images) != len(train_labels):
        raise ValueError(
            "at least one training image, and a label for each, is needed: got "
            f"{len(train_images)} images and {len(train_labels)} labels."
        )
    if train_images.shape[3] != test_images.shape[3]:
        raise ValueError(
            "training and test images must have the same channels: got "
            f"{train_images.shape[3]} and {test_images.shape[3]}."
        )
    known = _histograms(train_images)
    nearest = [np.abs(known - own).sum(axis=1).argmin() for own in _histograms(test_images)]
    return np.asarray(train_labels)[np.array(nearest, np.int64)]


def _histograms(images: UInt8[np.ndarray, "n h w c"]) -> np.ndarray:
    """Shares of the pixels in each bin, float32 [n, c · BINS]."""
    channels = images.shape[3]
    offsets = BINS * np.arange(channels)  # so that one count does for all channels
    counts = np.empty((len(images), channels * BINS), np.float32)
    for row, image in zip(counts, images, strict=True):
        bins = image.reshape(-1, channels).astype(np.int64) * BINS // 256 + offsets
        row[:] = np.bincount(bins.ravel(), minlength=channels * BINS)
    return counts / (images.shape[1] * images.shape[2])
