import numpy as np
import pytest

from bvit.evaluation.statistics import (
    calibration_error,
    confusion,
    paired_difference,
    t_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    # statsmodels.stats.proportion.proportion_confint(method="wilson"), and Wilson's limits at 0.
    ("correct", "n", "low", "high"),
    [(50, 100, 0.40383, 0.59617), (0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (0, 0, 0, 1)],
)
def test_wilson_interval(correct, n, low, high):
    np.testing.assert_allclose(wilson_interval(correct, n), (low, high), atol=1e-5)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    truth, n, covered_single, covered_paired = 0.7, 300, 0, 0
    for _ in range(1000):
        easy = rng.random(n) < 0.6
        a = easy | (rng.random(n) < 0.25)
        b = easy | (rng.random(n) < 0.15)
        low, high = wilson_interval(int(a.sum()), n)
        covered_single += low <= truth <= high
        difference, (low, high) = paired_difference(a, b)
        assert low <= difference <= high
        covered_paired += low <= 0.04 <= high
    assert 930 <= covered_single <= 970
    assert 930 <= covered_paired <= 975


def test_agreement_narrows_a_paired_interval():
    rng = np.random.default_rng(1)
    a = rng.random(1000) < 0.5
    b = a.copy()
    b[:20] = ~b[:20]
    _, (low, high) = paired_difference(a, b)
    assert high - low < 0.02
    _, (low, high) = paired_difference(a, rng.permutation(a))
    assert high - low > 0.06


def test_equal_answers_leave_some_doubt():
    right = np.ones(10, bool)
    difference, (low, high) = paired_difference(right, right)
    assert difference == 0 and low < 0 < high


def seeds_of_two_models(rng, seeds, n):
    """Right or not of two models, [seeds, n] each; the first is right 4 points more often."""
    easy = rng.random(n) < 0.6
    return (easy | (rng.random((seeds, n)) < rate) for rate in (0.25, 0.15))


def test_the_interval_over_seeds_is_that_of_each_images_mean():
    a, b = seeds_of_two_models(np.random.default_rng(2), seeds=3, n=200)
    means = [np.mean([p[s] * 1.0 - p[3 + s] for s in range(3)]) for p in zip(*a, *b, strict=True)]
    difference, interval = paired_difference(a, b)
    assert difference == pytest.approx(a.mean() - b.mean())
    # The two added images: half a one with a difference of 1, half with −1, one with 0.
    values, weights = [*means, 1, -1, 0], [*[2] * 200, 1, 1, 2]
    middle = np.average(values, weights=weights)
    error = np.sqrt(np.cov(values, fweights=weights, ddof=0) / 202)
    np.testing.assert_allclose(interval, (middle - 1.959964 * error, middle + 1.959964 * error))
    np.testing.assert_allclose(interval, difference + np.array([-1.96, 1.96]) * error, atol=2e-3)


def test_a_seed_that_is_given_twice_changes_nothing_and_another_narrows_the_interval():
    a, b = seeds_of_two_models(np.random.default_rng(3), seeds=2, n=500)
    once = paired_difference(a[0], b[0])
    twice = paired_difference(a[[0, 0]], b[[0, 0]])
    np.testing.assert_allclose([twice[0], *twice[1]], [once[0], *once[1]])
    _, (low, high) = paired_difference(a, b)
    assert high - low < 0.9 * (once[1][1] - once[1][0])


def test_intervals_of_several_seeds_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(4)
    intervals = [paired_difference(*seeds_of_two_models(rng, 3, 300))[1] for _ in range(1000)]
    assert 930 <= sum(low <= 0.04 <= high for low, high in intervals) <= 970


def test_different_images_cannot_be_paired():
    with pytest.raises(ValueError, match="same images"):
        paired_difference(np.ones(3, bool), np.ones(4, bool))


@pytest.mark.parametrize(
    "freedom, quantile",  # scipy.stats.t.ppf(0.975, freedom)
    [(1, 12.70620), (3, 3.18245), (10, 2.22814), (11, 2.20099), (20, 2.08596), (1000, 1.96234)],
)
def test_a_mean_of_seeds_has_the_interval_of_students_t(freedom, quantile):
    values = np.arange(freedom + 1) * 1.0
    error = values.std(ddof=1) / np.sqrt(freedom + 1)
    mean, interval = t_interval(values)
    np.testing.assert_allclose(interval, mean + np.array([-1, 1]) * quantile * error, rtol=2e-4)


def test_t_interval_is_that_of_scipy():
    mean, interval = t_interval([0.5, 0.52, 0.57])
    assert mean == pytest.approx(0.53)
    # scipy.stats.t.interval(0.95, 2, loc=mean, scale=scipy.stats.sem(values))
    np.testing.assert_allclose(interval, (0.440433, 0.619567), rtol=1e-4)


def test_calibration_is_the_gap_of_each_bin_weighted_by_its_images():
    rng = np.random.default_rng(0)
    confidence = rng.random(2000).astype(np.float32)
    confidence[:2] = 0.0, 1.0
    right = rng.random(2000) < confidence**2
    edges = np.linspace(0, 1, 16)
    by_hand = 0.0
    for low, high in zip(edges, edges[1:], strict=False):
        inside = (confidence >= low) & ((confidence < high) | (high == 1) & (confidence == 1))
        gap = abs(right[inside].mean() - confidence[inside].astype(float).mean())
        by_hand += inside.mean() * gap
    np.testing.assert_allclose(calibration_error(confidence, right), by_hand, rtol=1e-6)
    assert calibration_error(np.ones(3, np.float32), np.ones(3, bool)) == 0
    assert calibration_error(np.array([np.nan]), np.array([False])) == 0
    assert calibration_error(np.zeros(0), np.zeros(0, bool)) == 0


def test_confusion_has_the_accuracy_of_each_class_on_its_diagonal():
    label, predicted = np.array([0, 0, 0, 0, 2]), np.array([0, 0, 0, 2, 1])
    shares = confusion(label, predicted, 3)
    np.testing.assert_allclose(shares, [[0.75, 0, 0.25], [np.nan] * 3, [0, 1, 0]])
