"""How well one number tells two kinds of things apart, whatever its scale."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class Separation(NamedTuple):
    """What `separation` measures.

    Attributes:
      auc: area under the ROC curve: how often a positive has the higher score; ties count half.
      average_precision: mean precision over the positives, in the order of their scores; of equal
        scores all count at once.
      threshold: from which score on to call positive, so that balanced accuracy is highest.
      balanced_accuracy: the mean of the shares of positives and of negatives that are told right.
    """

    auc: float
    average_precision: float
    threshold: float
    balanced_accuracy: float


def separation(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> Separation:
    """Measures how well high scores tell the positives from the rest.

    Raises:
      ValueError: no positive or no negative; other numbers of scores than of labels.
    """
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(
            f"scores and labels must be as many: got {scores.shape} and {positive.shape}."
        )
    if positive.all() or not positive.any():
        raise ValueError(
            f"both kinds are needed: got {positive.sum()} of {positive.size} positive."
        )
    descending = np.argsort(-scores, kind="stable")
    ordered = scores[descending]
    last_of_equals = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    hits = np.cumsum(positive[descending])[last_of_equals]
    called = last_of_equals + 1
    recall, false_alarm = hits / hits[-1], (called - hits) / (called[-1] - hits[-1])
    balanced = (recall + 1 - false_alarm) / 2
    best = int(np.argmax(balanced))
    return Separation(
        auc=float(np.trapezoid(np.append(0, recall), np.append(0, false_alarm))),
        average_precision=float(np.diff(recall, prepend=0) @ (hits / called)),
        threshold=float(ordered[last_of_equals[best]]),
        balanced_accuracy=float(balanced[best]),
    )


def balanced_accuracy(
    scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], threshold: float
) -> float:
    """The mean share of positives and of negatives told right by a given threshold."""
    called = np.asarray(scores) >= threshold
    return float((called[positive].mean() + (~called[~positive]).mean()) / 2)
