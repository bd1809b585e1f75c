"""Scores of a metric against human judgements: 2AFC, accuracy, JND, and their confidence intervals."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A score with its 95 % confidence interval, from `count` examples."""

    value: float
    low: float
    high: float
    count: int


def two_afc_score(d0: Array, d1: Array, judge: Array) -> Array:
    """BAPPS' 2AFC score of each triplet: the share of judges who agree with the metric (arXiv 1801.03924).

    Args:
        d0: distances of the first images to their references, `(N,)`.
        d1: distances of the second.
        judge: share of judges who chose the second image, `(N,)`.

    Returns:
        `(N,)`, in [0, 1]: 0.5 where the distances are equal, NaN where one of them is NaN.
    """
    return np.select([d0 < d1, d1 < d0, d0 == d1], [1 - judge, judge, 0.5 + 0 * judge], np.nan)


def accuracy(d0: Array, d1: Array, judge: Array) -> Array:
    """R-LPIPS' accuracy of each triplet: 1 where the metric agrees with most judges (arXiv 2307.15157).

    Args:
        d0: distances of the first images to their references, `(N,)`.
        d1: distances of the second.
        judge: share of judges who chose the second image, `(N,)`.

    Returns:
        `(N,)`: 0, 1, or 0.5 where the judges or the distances are tied; NaN where a distance is NaN.
    """
    return two_afc_score(d0, d1, (np.sign(judge - 0.5) + 1) / 2)


def margin(d0: Array, d1: Array, judge: Array) -> Array:
    """Return how clearly a metric agrees with most judges on each triplet: above 0 it agrees.

    The margin is `log(d_other / d_chosen)`, where `d_chosen` is the distance of the image that most judges
    chose.

    Args:
        d0: distances of the first images to their references, `(N,)`.
        d1: distances of the second.
        judge: share of judges who chose the second image, `(N,)`.

    Returns:
        `(N,)`, NaN where the judges are tied.
    """
    least = np.finfo(np.float64).tiny
    ratio = np.log(np.maximum(d1, least)) - np.log(np.maximum(d0, least))
    return np.select([judge < 0.5, judge > 0.5], [ratio, -ratio], np.nan)


def mean_of(credit: Callable[[Array, Array, Array], Array]) -> Callable[..., float]:
    """Return a function of `d0`, `d1` and `judge` that averages the credit of each triplet."""
    return lambda d0, d1, judge: float(np.mean(credit(d0, d1, judge)))


def voc_ap(rec: npt.NDArray[Any], prec: npt.NDArray[Any], use_07_metric: bool = False) -> np.floating[Any]:
    """Average precision of PASCAL VOC: the area under the precision-recall curve, made monotone.

    Args:
        rec: recalls, ascending, 1-D.
        prec: the precision at each recall.
        use_07_metric: return the mean precision at 11 recalls, as in VOC 2007, instead of the area.

    >>> float(voc_ap(np.array([0.5, 1.0]), np.array([1.0, 0.5])))
    0.75
    """
    if use_07_metric:
        levels = np.arange(0.0, 1.1, 0.1)
        return np.float64(np.mean([np.max(prec, where=rec >= level, initial=0.0) for level in levels]))
    recalls = np.concatenate([[0.0], rec, [1.0]])
    precisions = np.concatenate([[0.0], prec, [0.0]])
    envelope = np.maximum.accumulate(precisions[::-1])[::-1]
    return np.float64(np.sum(np.diff(recalls) * envelope[1:]))


def jnd_score(d: Array, same: Array) -> float:
    """BAPPS' JND score: average precision when small distances are to find the pairs that look the same.

    Args:
        d: distances, `(N,)`.
        same: share of people who saw no difference, `(N,)`.

    Returns:
        The score in [0, 1]; NaN if every person saw a difference in every pair, or if a number is NaN.
    """
    if not np.sum(same) > 0 or np.isnan(d).any():
        return float("nan")
    order = np.argsort(d, kind="stable")
    hits, misses = np.cumsum(same[order]), np.cumsum(1 - same[order])
    return float(voc_ap(hits / hits[-1], hits / (hits + misses)))


def disagreement(d: Array, same: Array) -> Array:
    """Return how much a metric and people disagree on each pair.

    It is the difference between two numbers in [0, 1]: the pair's rank by distance, and the share of people
    who saw a difference.

    Args:
        d: distances, `(N,)`.
        same: share of people who saw no difference, `(N,)`.

    Returns:
        `(N,)`, in [0, 1].
    """
    rank = (np.searchsorted(np.sort(d), d) + np.searchsorted(np.sort(d), d, side="right") - 1) / 2
    return np.abs(rank / max(1, len(d) - 1) - (1 - same))


def bootstrap(
    statistic: Callable[..., float],
    *columns: Array,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    draws: int = 1000,
) -> Score:
    """Compute a statistic of examples, and its 95 % interval by the percentile bootstrap (Efron 1979).

    Draws for which the statistic is NaN are left out.

    Args:
        statistic: maps columns, each `(N,)`, to a number.
        columns: the examples.
        groups: the group of each example, such as its reference, whose examples are drawn together; by
            default each example is its own.
        seed: of the draws.
        draws: how many samples of the groups are drawn, with replacement.

    Returns:
        The statistic, its interval, and the number of examples. The interval is NaN if there are several
        examples in only one group.
    """
    count = len(columns[0])
    members = group_positions(range(count) if groups is None else groups)
    alone = len(members) == count
    rng = np.random.default_rng(seed)
    picks = (rng.integers(0, len(members), len(members)) for _ in range(draws))
    if not alone:
        picks = (np.concatenate([members[k] for k in pick]) for pick in picks)
    estimates = [statistic(*(column[pick] for column in columns)) for pick in picks]
    known = [estimate for estimate in estimates if not np.isnan(estimate)]
    varied = alone or len(members) > 1
    low, high = np.quantile(known, [0.025, 0.975]) if known and varied else (np.nan, np.nan)
    return Score(float(statistic(*columns)), float(low), float(high), count)


def group_positions(groups: Sequence[Hashable]) -> list[npt.NDArray[np.intp]]:
    """Return the positions of the members of each group, in the order in which the groups appear."""
    members: dict[Hashable, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    return [np.array(each, dtype=np.intp) for each in members.values()]
