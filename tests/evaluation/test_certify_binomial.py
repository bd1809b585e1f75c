import numpy as np
import pytest
from scipy import stats

from rlpips.evaluation.certify_binomial import (
    binomial_probabilities,
    lower_confidence_bound,
    lower_order_statistic,
)


@pytest.mark.parametrize("alpha", [0.2, 0.001, 1e-6])
@pytest.mark.parametrize("n", [1, 10, 1000, 100_000])
def test_the_bound_is_that_of_clopper_and_pearson(n, alpha):
    for hits in sorted({0, 1, n // 3, n - 1, n}):
        expected = stats.beta.ppf(alpha, hits, n - hits + 1) if hits else 0.0
        assert lower_confidence_bound(hits, n, alpha) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("n", [1, 7, 1000, 100_000])
def test_probabilities_are_exact(n):
    for p in (1e-9, 0.1, 0.5, 1 - 1e-9):
        expected = stats.binom.pmf(np.arange(n + 1), n, p)
        np.testing.assert_allclose(binomial_probabilities(n, p), expected, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.2, 0.0005])
@pytest.mark.parametrize("q", [0.0, 1e-200, 1e-5, 0.03, 0.5, 0.99])
def test_the_draw_is_the_largest_that_the_quantile_exceeds(q, alpha):
    for n in (1, 5, 1000):
        # draw k lies above the quantile if fewer than k of the n draws lie at or below it
        wrong = stats.binom.cdf(np.arange(1, n + 1) - 1, n, q)
        assert lower_order_statistic(n, q, alpha) == (wrong <= alpha).sum()
