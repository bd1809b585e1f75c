"""How well a metric agrees with people, and how much of that an attacker leaves: 2AFC and JND scores.

Data sets are BAPPS or in its layout (`rlpips.data`). Each image has its own random stream, so `torchrun`
gives the numbers of a run alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlpips.attacks.base import Attack
from rlpips.attacks.metrics import Metric, distances, metric_name
from rlpips.attacks.objectives import RankFlip
from rlpips.attacks.ssa import SSA
from rlpips.data.judgements import JND, TwoAFC
from rlpips.errors import DatasetError, UndefinedDistanceError
from rlpips.evaluation.worst_examples import WorstImages
from rlpips.images import resize
from rlpips.system.processes import Processes

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A score with its 95 % confidence interval, from `count` examples."""

    value: float
    low: float
    high: float
    count: int


def two_afc_score(d0: Array, d1: Array, judge: Array) -> Array:
    """BAPPS' 2AFC score of each triplet: the share of judges who chose as the metric does (arXiv 1801.03924).

    Args:
        d0: distances of the first images to their references, `(N,)`.
        d1: distances of the second.
        judge: share of judges who chose the second image.

    Returns:
        `(N,)`, in [0, 1]; one half where the distances are equal, NaN where one of them is.
    """
    return np.select([d0 < d1, d1 < d0, d0 == d1], [1 - judge, judge, 0.5 + 0 * judge], np.nan)


def accuracy(d0: Array, d1: Array, judge: Array) -> Array:
    """R-LPIPS' accuracy of each triplet: 1 where the metric chooses as most judges do (arXiv 2307.15157).

    Where the judges or the distances are tied it is one half. Arguments as for `two_afc_score`.
    """
    return two_afc_score(d0, d1, (np.sign(judge - 0.5) + 1) / 2)


def margin(d0: Array, d1: Array, judge: Array) -> Array:
    """Return by how much each triplet is judged rightly: the logarithm of the distances' ratio.

    That is the distance of the image that most judges did not choose over that of the other, so that a margin
    above 0 is right. NaN where the judges are tied. Arguments as for `two_afc_score`.
    """
    least = np.finfo(np.float64).tiny
    ratio = np.log(np.maximum(d1, least)) - np.log(np.maximum(d0, least))
    return np.select([judge < 0.5, judge > 0.5], [ratio, -ratio], np.nan)


def mean_of(credit: Callable[[Array, Array, Array], Array]) -> Callable[..., float]:
    """Make a statistic of triplets out of what each triplet is credited with."""
    return lambda d0, d1, judge: float(np.mean(credit(d0, d1, judge)))


def voc_ap(rec: npt.NDArray[Any], prec: npt.NDArray[Any], use_07_metric: bool = False) -> np.floating[Any]:
    """Average precision, as PASCAL VOC defines it: the area under the monotone precision-recall curve.

    Args:
        rec: recalls, ascending, 1-D.
        prec: the precision at each.
        use_07_metric: the mean over 11 recalls, as in VOC 2007, instead of the area.

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
    """BAPPS' JND score: mean average precision of finding pairs that look the same by small distances.

    Args:
        d: distances, `(N,)`.
        same: share of people who saw no difference.

    Returns:
        The score; NaN where nobody saw a pair as the same, or a number is NaN.
    """
    if not np.sum(same) > 0 or np.isnan(d).any():
        return float("nan")
    order = np.argsort(d, kind="stable")
    hits, misses = np.cumsum(same[order]), np.cumsum(1 - same[order])
    return float(voc_ap(hits / hits[-1], hits / (hits + misses)))


def disagreement(d: Array, same: Array) -> Array:
    """Return how far a metric and people are apart on each pair, in [0, 1].

    A pair's rank by distance, from 0 for the least to 1, is compared with the share of people who saw a
    difference. Arguments as for `jnd_score`.
    """
    rank = (np.searchsorted(np.sort(d), d) + np.searchsorted(np.sort(d), d, side="right") - 1) / 2
    return np.abs(rank / max(1, len(d) - 1) - (1 - same))


def bootstrap(statistic: Callable[..., float], *columns: Array, seed: int = 0, draws: int = 1000) -> Score:
    """Estimate a statistic of examples and its 95 % interval, by the bootstrap (Efron 1979).

    Args:
        statistic: maps columns, each `(N,)`, to a number.
        columns: the examples.
        seed: of the draws.
        draws: how many.

    Returns:
        The score; its interval is that of the draws for which the statistic is not NaN.
    """
    count = len(columns[0])
    rng = np.random.default_rng(seed)
    picks = (rng.integers(0, count, count) for _ in range(draws))
    estimates = [statistic(*(column[pick] for column in columns)) for pick in picks]
    known = [estimate for estimate in estimates if not np.isnan(estimate)]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (np.nan, np.nan)
    return Score(float(statistic(*columns)), float(low), float(high), count)


def _stack(examples: Sequence[Mapping[str, Any]], key: str, device: torch.device | str) -> Tensor:
    shapes = {tuple(example[key].shape) for example in examples}
    if len(shapes) > 1:
        raise DatasetError(f"the images differ in size, {sorted(shapes)}; measure them with --batch-size 1")
    return torch.stack([example[key] for example in examples]).to(device)


def _undefined(metric: Metric, dataset: TwoAFC | JND, row: int) -> UndefinedDistanceError:
    named = getattr(dataset, "name_of", "example {}".format)  # training takes any items
    return UndefinedDistanceError(f"{metric_name(metric)} gives NaN for {named(row)}", row)


def measure_2afc(
    metric: Metric,
    dataset: TwoAFC,
    attack: Attack | None = None,
    perturb: str = "x0",
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    worst: WorstImages | None = None,
    progress: Callable[[int], Any] | None = None,
) -> tuple[Array, Array, Array]:
    """Measure the triplets of a data set, after an attack if one is given.

    Every triplet's result depends on that triplet alone (and with `SSA` on the reference of the next one,
    which is brought to the size of this one's).

    Args:
        metric: the metric, on `device`; the attack is on this metric.
        dataset: the triplets.
        attack: what the attacker does, to break the judgement.
        perturb: what is attacked: 'x0', 'x1', 'ref' or 'x0+x1'.
        batch_size: triplets at once.
        device: where to compute.
        limit: take only the first triplets.
        worst: gets the attacked images of this process, valued by how far the judgement is broken.
        progress: called with the number of triplets done after each batch of this process.

    Returns:
        `d0`, `d1` and `judge`, each `(N,)`, float64, the same in every process of a group.

    Raises:
        DatasetError: a judgement cannot be read, or images of one batch differ in size.
        ImageError: an image cannot be read.
        UndefinedDistanceError: the metric gives NaN for an image, which the error names.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    processes = Processes.current()
    own: dict[int, Any] = {}
    for number, rows in processes.batches(count, batch_size):
        examples = [dataset[i] for i in rows]
        ref, x0, x1, judge = (_stack(examples, key, device) for key in ("ref", "p0", "p1", "judge"))
        if attack is None:
            with torch.no_grad():
                d0, d1 = (distances(metric, each, ref) for each in (x0, x1))
        else:
            other = None
            if isinstance(attack, SSA):
                following = dataset[(rows[-1] + 1) % count]["ref"].to(device)[None]
                if following.shape != ref[-1:].shape:
                    following = resize(following, (ref.shape[-2], ref.shape[-1]))
                other = torch.cat([ref[1:], following])
            objective = RankFlip(metric, ref, x0, x1, judge, perturb, other)
            try:
                attacked = attack(objective, objective.x, rows)
            except UndefinedDistanceError as error:
                own[number] = _undefined(metric, dataset, error.image_id)
                break
            with torch.no_grad():
                d0, d1 = objective.distances(attacked, torch.arange(len(rows), device=ref.device))
        own[number] = [each.flatten().cpu().double().numpy() for each in (d0, d1, judge)]
        undefined = np.isnan(own[number][0] + own[number][1])
        if undefined.any():
            own[number] = _undefined(metric, dataset, rows[int(undefined.argmax())])
            break
        if attack is not None and worst is not None:
            worst.add(rows, -margin(*own[number]), attacked)
        if progress is not None:
            progress(len(rows))
    columns = zip(*processes.gather(own), strict=True)
    d0_all, d1_all, judge_all = (np.concatenate(column) for column in columns)
    return d0_all, d1_all, judge_all


def measure_jnd(
    metric: Metric,
    dataset: JND,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> tuple[Array, Array]:
    """Measure the pairs of a data set; arguments as for `measure_2afc`.

    Returns:
        Distances and the shares of people who saw no difference, each `(N,)`, float64.

    Raises:
        DatasetError: an answer cannot be read, or images of one batch differ in size.
        ImageError: an image cannot be read.
        UndefinedDistanceError: the metric gives NaN for an image, which the error names.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    processes = Processes.current()
    own: dict[int, Any] = {}
    for number, rows in processes.batches(count, batch_size):
        examples = [dataset[i] for i in rows]
        p0, p1, same = (_stack(examples, key, device) for key in ("p0", "p1", "same"))
        with torch.no_grad():
            d = distances(metric, p0, p1)
        own[number] = [each.flatten().cpu().double().numpy() for each in (d, same)]
        undefined = np.isnan(own[number][0])
        if undefined.any():
            own[number] = _undefined(metric, dataset, rows[int(undefined.argmax())])
            break
        if progress is not None:
            progress(len(rows))
    d_all, same_all = (np.concatenate(column) for column in zip(*processes.gather(own), strict=True))
    return d_all, same_all
