"""Intervals for accuracies and for paired differences of accuracies."""

import math
import statistics
from collections.abc import Sequence

import numpy as np

# Two-sided 95 % point of the standard normal distribution.
Z95 = 1.959963984540054
# Two-sided 95 % points of Student's t for 1 to 10 degrees of freedom (Abramowitz and Stegun 1972,
# Table 26.10).
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


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
    Min (2005), two pictures are added for the interval, spread evenly over the four ways in which
    a pair can turn out, so that it is not empty where there is no disagreement.

    Of several seeds, a picture's difference is its mean over them. The pictures stay the unit: the
    interval says what others of their kind would give to these trainings, and not what other
    trainings would give, of which the spread of the seeds' own differences tells.

    Args:
      a: whether the first was right, bool [n] or [seeds, n].
      b: whether the second was right, of the same shape: same seeds and pictures, in the same
        order.

    Returns:
      mean(a) − mean(b), and (low, high).

    Raises:
      ValueError: if the two are not of the same pictures.
    """
    if a.shape != b.shape:
        raise ValueError(f"paired outcomes must be of the same pictures: got {a.shape}, {b.shape}.")
    n = a.shape[-1]
    if n == 0:
        return 0.0, (-1.0, 1.0)
    each = (a.astype(np.float64) - b).reshape(-1, n).mean(axis=0)
    total = n + 2
    middle = float(each.sum()) / total
    # Of the two added pictures, half a one differs by +1, half by −1, and one by 0.
    square = (float(np.sum(each**2)) + 1) / total
    half = Z95 * math.sqrt((square - middle**2) / total)
    return float(each.mean()), (max(-1.0, middle - half), min(1.0, middle + half))


def t_interval(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Mean of independent repetitions, such as seeds, with its 95 % interval (Student 1908).

    Args:
      values: at least two; their spread says how much one of them is worth.

    Returns:
      The mean, and (low, high).
    """
    n = len(values)
    mean = statistics.fmean(values)
    half = t95(n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean, (mean - half, mean + half)


def t95(freedom: int) -> float:
    """Two-sided 95 % point of Student's t.

    Args:
      freedom: degrees of freedom, at least 1. Beyond those of the table, the expansion about the
        normal distribution (Abramowitz and Stegun 1972, 26.7.5), exact to 1e-4 there.
    """
    if freedom <= len(T95):
        return T95[freedom - 1]
    z = Z95
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
