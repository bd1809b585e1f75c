"""Correlations of distances with people's scores, and their intervals, which resample groups of pairs.

Distances and scores both grow with what people see, so 1 is perfect agreement. Pairs of one reference are not
independent. So a bootstrap sample draws whole groups (references), with replacement. In it, a pair counts as
often as its group was drawn. All correlations of all samples come from these counts, without sorting or
fitting each sample, and are exactly those of the repeated pairs (Pearson's: up to the choice of the curve).
"""

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from rlpips.evaluation.logistic import candidates, sigmoid_blocks
from rlpips.evaluation.scores import Score, group_positions

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.intp]

CORRELATIONS = ("Spearman", "Kendall", "Pearson")
_AT_ONCE = 2**22  # numbers in an intermediate array
_LEAST = 1e-10  # a smaller variance of standardised values is rounding


def correlations(
    d: Array,
    worse: Array,
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    draws: int = 1000,
) -> dict[str, Score]:
    """Compute how well distances agree with people's scores, with 95 % intervals by the bootstrap of groups.

    - Spearman: the correlation of ranks; equal values share their mean rank.
    - Kendall: tau-b, the share of pairs of pairs in the same order minus that in the opposite order,
      corrected for ties.
    - Pearson: the correlation with scores that VQEG's logistic curve of four parameters predicts from the
      distances (`fit_logistic`). It is negative if the curve falls. Each bootstrap sample chooses its curve
      anew, among several hundred.

    Args:
        d: distances, `(N,)`.
        worse: people's scores, higher is worse, `(N,)`.
        groups: the group of each pair, such as its reference; by default each pair is its own.
        seed: of the draws.
        draws: how many samples of the groups are drawn, with replacement.

    Returns:
        For 'Spearman', 'Kendall' and 'Pearson' the correlation in [-1, 1], its interval, and N. All are NaN
        if a distance is NaN, if all distances or all scores are equal, or if N is less than 3. The interval
        is NaN if there is only one group.
    """
    count = len(d)
    if count < 3 or np.isnan(d).any() or not np.ptp(d) > 0 or not np.ptp(worse) > 0:
        return dict.fromkeys(CORRELATIONS, Score(np.nan, np.nan, np.nan, count))
    members = group_positions(range(count) if groups is None else groups)
    order = np.concatenate(members)  # the pairs of a group beside one another
    starts = np.cumsum([0, *map(len, members[:-1])])
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, len(members), len(members)) for _ in range(draws)]
    # A row for each sample: how often it holds each group. The first row is the data themselves.
    times = np.array([np.ones(len(members)), *(np.bincount(each, minlength=len(members)) for each in drawn)])
    d, worse = d[order], worse[order]
    found = {
        "Spearman": _spearman(d, worse, np.repeat(times, np.diff([*starts, count]), axis=1)),
        "Kendall": _kendall(d, worse, starts, times),
        "Pearson": _pearson(d, worse, starts, times),
    }
    return {name: _score(each, len(members), count) for name, each in found.items()}


def _score(estimates: Array, groups: int, count: int) -> Score:
    """Make a score of the estimates from the data and from samples."""
    known = estimates[1:][~np.isnan(estimates[1:])]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) and groups > 1 else (np.nan, np.nan)
    return Score(float(estimates[0]), float(low), float(high), count)


def _spearman(d: Array, worse: Array, weights: Array) -> Array:
    """Correlate ranks, for pairs that count `weights` `(samples, N)` times."""
    at_once = max(1, _AT_ONCE // len(d))
    parts = []
    for start in range(0, len(weights), at_once):
        w = weights[start : start + at_once]
        a, b = _ranks(d, w), _ranks(worse, w)
        parts.append(_ratio((w * a * b).sum(axis=1), (w * a * a).sum(axis=1), (w * b * b).sum(axis=1)))
    return np.concatenate(parts)


def _ranks(values: Array, weights: Array) -> Array:
    """Return mean ranks, minus their mean, of values that count `weights` `(samples, N)` times."""
    _, place, repeats = np.unique(values, return_inverse=True, return_counts=True)
    order = np.argsort(place, kind="stable")
    each = np.add.reduceat(weights[:, order], np.cumsum([0, *repeats[:-1]]), axis=1)
    ranks: Array = (np.cumsum(each, axis=1) - each / 2 - each.sum(axis=1, keepdims=True) / 2)[:, place]
    return ranks


def _kendall(d: Array, worse: Array, starts: Positions, times: Array) -> Array:
    """Compute tau-b. Pairs of pairs are counted once for all samples, by the groups of the two."""
    groups = len(starts)
    ordered, tied_d, tied_worse = np.zeros((3, groups, groups))
    at_once = max(1, _AT_ONCE // len(d))
    group_of = np.repeat(np.arange(groups), np.diff([*starts, len(d)]))
    for first in range(0, len(d), at_once):
        rows = slice(first, first + at_once)
        orders = []
        for values, tied in ((d, tied_d), (worse, tied_worse)):
            a, b = values[rows, None], values[None]
            orders.append((a > b).astype(np.int8) - (a < b))
            np.add.at(tied, group_of[rows], np.add.reduceat(a == b, starts, axis=1, dtype=np.int64))
        np.add.at(
            ordered, group_of[rows], np.add.reduceat(orders[0] * orders[1], starts, axis=1, dtype=np.int64)
        )
    total = (times @ np.bincount(group_of)) ** 2
    agreement, equal_d, equal_worse = (
        ((times @ counts) * times).sum(axis=1) for counts in (ordered, tied_d, tied_worse)
    )
    return _ratio(agreement, total - equal_d, total - equal_worse)


def _pearson(d: Array, worse: Array, starts: Positions, times: Array) -> Array:
    """Correlate scores with those that the best of many logistic curves predicts, in each sample."""
    y = (worse - worse.mean()) / worse.std()

    def sums(values: Array) -> Array:
        """Sum `(k, N)` over each sample: `(k, samples)`."""
        return np.add.reduceat(values, starts, axis=1) @ times.T

    count, sum_y, sum_yy = sums(np.stack([np.ones_like(y), y, y * y]))
    mean_y = sum_y / count
    best = np.full(len(times), np.nan)
    for x in sigmoid_blocks(d, candidates(d, worse)):
        mean_x = sums(x) / count
        # Curves that are constant in a sample have no correlation there.
        found = _ratio(
            sums(x * y) / count - mean_x * mean_y,
            sums(x * x) / count - mean_x**2,
            sum_yy / count - mean_y**2,
        )
        found = np.concatenate([best[None], found])
        strength = np.where(np.isnan(found), -1, np.abs(found))
        best = np.take_along_axis(found, strength.argmax(axis=0)[None], axis=0)[0]
    return best


def _ratio(together: Array, alone: Array, other: Array) -> Array:
    """Return `together / sqrt(alone * other)`, NaN where one of these is 0 up to rounding."""
    found = (alone > _LEAST) & (other > _LEAST)
    ratio = together / np.sqrt(np.where(found, alone * other, 1))
    return np.where(found, np.clip(ratio, -1, 1), np.nan)
