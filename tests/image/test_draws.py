"""What random blurs draw."""

import jax
import numpy as np
import pytest
import scipy.stats

from bvit.image.draws import split_each, uniform_each

IMAGES = np.zeros((500, 1, 1, 1), np.float32)
RANGES = {"a": (2.0, 4.0), "b": (-30.0, 10.0)}


def test_draws_are_uniform_and_independent():
    a, b = (np.asarray(x) for x in uniform_each(jax.random.key(0), IMAGES, RANGES, 1.0))
    for x, (low, high) in ((a, RANGES["a"]), (b, RANGES["b"])):
        assert scipy.stats.kstest(x, scipy.stats.uniform(low, high - low).cdf).pvalue > 0.01
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1
    first, second = split_each(jax.random.split(jax.random.key(0), 500))
    draws = [uniform_each(k, IMAGES, {"a": (0.0, 1.0)}, 1.0)[0] for k in (first, second)]
    assert abs(np.corrcoef(*draws)[0, 1]) < 0.1


def test_all_of_an_images_numbers_are_zero_together():
    a, b = (np.asarray(x) for x in uniform_each(jax.random.key(0), IMAGES, RANGES, 0.25))
    np.testing.assert_array_equal(a == 0, b == 0)
    assert abs((a > 0).mean() - 0.25) < 0.06


def test_refuses_a_reversed_range():
    with pytest.raises(ValueError, match="b must be within -inf and inf, the lower bound first"):
        uniform_each(jax.random.key(0), IMAGES, {"b": (1.0, -1.0)}, 1.0)
