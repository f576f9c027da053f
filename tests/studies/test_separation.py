"""Areas under curves against their definitions, over all pairs."""

import numpy as np
import pytest

from bvit.studies.separation import balanced_accuracy, separation

RNG = np.random.default_rng(0)
POSITIVE = RNG.random(80) < 0.4
SCORES = np.round(RNG.normal(size=80) + POSITIVE, 1)  # rounded, so that some are equal


def test_auc_is_the_share_of_pairs_in_order():
    pairs = SCORES[POSITIVE][:, None] - SCORES[~POSITIVE]
    expected = (pairs > 0).mean() + (pairs == 0).mean() / 2
    assert separation(SCORES, POSITIVE).auc == pytest.approx(expected)


def test_average_precision_is_the_mean_over_positives():
    precisions = [POSITIVE[s <= SCORES].mean() for s in SCORES[POSITIVE]]
    assert separation(SCORES, POSITIVE).average_precision == pytest.approx(np.mean(precisions))


def test_no_threshold_is_better_than_the_best():
    found = separation(SCORES, POSITIVE)
    tried = [balanced_accuracy(SCORES, POSITIVE, threshold) for threshold in SCORES]
    assert found.balanced_accuracy == pytest.approx(max(tried))
    at_best = balanced_accuracy(SCORES, POSITIVE, found.threshold)
    assert at_best == pytest.approx(found.balanced_accuracy)


def test_the_ends():
    perfect = separation(POSITIVE.astype(float), POSITIVE)
    assert perfect == (1, 1, 1, 1)
    useless = separation(np.zeros(80), POSITIVE)
    assert useless.auc == useless.balanced_accuracy == 0.5
    assert useless.average_precision == pytest.approx(POSITIVE.mean())
    assert separation(-SCORES, POSITIVE).auc == pytest.approx(1 - separation(SCORES, POSITIVE).auc)


def test_refuses_one_kind_alone():
    with pytest.raises(ValueError, match="both kinds"):
        separation(SCORES, np.ones(80, bool))
    with pytest.raises(ValueError, match="as many"):
        separation(SCORES[:3], POSITIVE)
