"""Exact binomial confidence: what a number of random draws says about a probability."""

import functools

import numpy as np

from rlpips.evaluation.scores import Array


def lower_confidence_bound(hits: int, n: int, alpha: float) -> float:
    """Return the one-sided lower bound of Clopper and Pearson (1934) for a probability.

    A random event happened `hits` times in `n` independent draws. Its probability is at least this bound. The
    statement is wrong with probability at most `alpha`.

    Args:
        hits: from 0 to `n`.
        n: the number of draws.
        alpha: how often the bound may be wrong, in (0, 1).

    >>> round(lower_confidence_bound(1000, 1000, 0.001), 4)  # the 1000th root of 0.001
    0.9931
    """
    if hits == 0:
        return 0.0
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        if binomial_probabilities(n, middle)[hits:].sum() <= alpha:
            low = middle
        else:
            high = middle
    return low


def lower_order_statistic(n: int, q: float, alpha: float) -> int:
    """Return which of `n` sorted draws lies at or below the quantile `q` of their distribution.

    The statement is wrong with probability at most `alpha`, whatever the distribution is. The draw is the
    largest for which this is so (Chiang et al. 2020, arXiv 2007.03730).

    Args:
        n: the number of draws.
        q: in [0, 1).
        alpha: how often the statement may be wrong, in (0, 1).

    Returns:
        The place of the draw, from 1 for the smallest. 0 if even the smallest may lie above the quantile.
    """
    if q == 0:
        return 0
    return int(np.searchsorted(np.cumsum(binomial_probabilities(n, q)), alpha, side="right"))


def binomial_probabilities(n: int, p: float) -> Array:
    """Return the probabilities of 0 to `n` hits in `n` draws, `(n + 1,)`; `p` is in (0, 1)."""
    hits = np.arange(n + 1)
    probabilities: Array = np.exp(_log_binomials(n) + hits * np.log(p) + (n - hits) * np.log1p(-p))
    return probabilities


@functools.lru_cache(maxsize=4)
def _log_binomials(n: int) -> Array:
    """Return the logarithms of the binomial coefficients of `n`, `(n + 1,)`."""
    factorials: Array = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    logarithms: Array = factorials[n] - factorials - factorials[::-1]
    return logarithms
