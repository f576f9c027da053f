"""Intervals for accuracies and for paired differences of accuracies."""

import math

import numpy as np

# Two-sided 95 % point of the standard normal distribution.
Z95 = 1.959963984540054


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927), which stays in [0, 1] for small n too.

    Args:
      correct: successes.
      n: trials; 0 gives (0, 1).
    """
    if n == 0:
        return 0.0, 1.0
    p, z2 = correct / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Difference of two accuracies on the same pictures, with its 95 % interval.

    The variance is that of the per-picture differences (McNemar's setting): pictures on which both
    agree add nothing to it, which is what makes a paired comparison sharp. Following Agresti and
    Min (2005), half a picture is added to each kind of disagreement for the interval, so that it is
    not empty when there is none.

    Args:
      a: whether the first was right, bool [n].
      b: whether the second was right, bool [n], same pictures in the same order.

    Returns:
      mean(a) − mean(b), and (low, high).

    Raises:
      ValueError: if the two are not of the same pictures.
    """
    if a.shape != b.shape:
        raise ValueError(f"paired outcomes must be of the same pictures: got {a.shape}, {b.shape}.")
    n = len(a)
    if n == 0:
        return 0.0, (-1.0, 1.0)
    gained, lost = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    plus, minus, total = gained + 0.5, lost + 0.5, n + 2
    middle = (plus - minus) / total
    half = Z95 * math.sqrt(((plus + minus) / total - middle**2) / total)
    return (gained - lost) / n, (max(-1.0, middle - half), min(1.0, middle + half))
