"""95 % intervals for accuracies and for paired differences of accuracies."""

from collections.abc import Sequence

import numpy as np
import scipy  # which loads scipy.stats, half a second, where it is first used

# Equal parts of [0, 1] that confidences are sorted into (Guo et al. 2017, section 3).
BINS = 15
# The point of a distribution that a two-sided 95 % interval ends at.
UPPER = 0.975


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927), which stays in [0, 1] for small n too.

    Args:
      correct: successes.
      n: trials; 0 gives (0, 1).
    """
    if n == 0:
        return 0.0, 1.0
    low, high = scipy.stats.binomtest(correct, n).proportion_ci(method="wilson")
    return float(low), float(high)


def paired_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Difference of two accuracies on the same images, with its 95 % interval.

    The variance is that of the per-image differences (McNemar's setting). Images on which both
    agree add nothing to it, which makes a paired comparison sharp. Two images are added for the
    interval, spread evenly over the four outcomes of a pair (Agresti and Min 2005), so that it is
    not empty where there is no disagreement.

    With several seeds, an image's difference is its mean over them. The interval is over images:
    it covers other images of the same kind given to these trainings, not other trainings. For
    those, see the spread of the differences of the seeds.

    Args:
      a: whether the first was right, bool [n] or [seeds, n].
      b: whether the second was right, of the same shape: same seeds and images, in the same
        order.

    Returns:
      mean(a) − mean(b), and (low, high).

    Raises:
      ValueError: the two are not of the same images.
    """
    if a.shape != b.shape:
        raise ValueError(f"paired results must be of the same images: got {a.shape}, {b.shape}.")
    n = a.shape[-1]
    if n == 0:
        return 0.0, (-1.0, 1.0)
    each = (a.astype(np.float64) - b).reshape(-1, n).mean(axis=0)
    total = n + 2
    middle = float(each.sum()) / total
    # Of the two added images, half a one differs by +1, half by −1, and one by 0.
    square = (float(np.sum(each**2)) + 1) / total
    half = float(scipy.stats.norm.ppf(UPPER) * np.sqrt((square - middle**2) / total))
    return float(each.mean()), (max(-1.0, middle - half), min(1.0, middle + half))


def t_interval(values: Sequence[float] | np.ndarray) -> tuple[float, tuple[float, float]]:
    """Mean of independent repetitions, such as seeds, with its 95 % interval (Student 1908).

    Args:
      values: at least two.

    Returns:
      The mean, and (low, high).
    """
    mean = float(np.mean(values))
    half = float(scipy.stats.t.ppf(UPPER, len(values) - 1) * scipy.stats.sem(values))
    return mean, (mean - half, mean + half)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3), in [0, 1].

    The images are sorted into 15 bins of equal width by their confidence; the error is the mean
    over all images of |accuracy − mean confidence| of their bin.

    Args:
      confidence: the probability of the predicted class, [n]; an image for which it is not finite
        counts as one of confidence 0.
      right: whether the prediction was right, bool [n].
    """
    confidence = np.nan_to_num(confidence, posinf=0.0).astype(np.float64)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / max(1, len(right)))


def confusion(label: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """The share of each class's images (row) that get each label (column); NaN without images.

    Its diagonal is the accuracy of each class.

    Args:
      label: true classes, [n].
      predicted: predicted classes, [n].
      num_classes: how many there are.
    """
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (label, predicted), 1)
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(axis=1, keepdims=True)
