"""Distances of a metric on judged images, before and after an attack.

Data sets are BAPPS, or have its layout (`rlpips.data`). An attack has random draws of its own for each image,
so the numbers depend neither on the batch size nor on the number of processes of `torchrun`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlpips.attacks.base import Attack
from rlpips.attacks.metrics import Metric, distances, metric_name
from rlpips.attacks.objectives import RankFlip
from rlpips.attacks.ssa import SSA
from rlpips.data.judgements import JND, TwoAFC
from rlpips.errors import DatasetError, UndefinedDistanceError
from rlpips.evaluation.scores import Array, margin
from rlpips.evaluation.worst_examples import WorstImages
from rlpips.images import resize
from rlpips.system.processes import Processes


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

    A triplet's result depends on that triplet alone. With `SSA` it also depends on the reference of the next
    triplet, which is resized if it has another size.

    Args:
        metric: the metric, on `device`. The attack is on this metric.
        dataset: the triplets.
        attack: tries to make the metric contradict the judgement.
        perturb: the image that is attacked: 'x0', 'x1', 'ref', or both of 'x0+x1'.
        batch_size: how many triplets run at once.
        device: where to compute.
        limit: use only the first triplets, at most this many; by default all.
        worst: takes the attacked images for which the metric contradicts the judgement most.
        progress: called after each batch of this process with the number of its triplets.

    Returns:
        `d0`, `d1` and `judge`, each `(N,)`, float64, the same in every process of a group.

    Raises:
        DatasetError: a judgement cannot be read, or the images of a batch differ in size.
        ImageError: an image cannot be read.
        UndefinedDistanceError: the metric gives NaN for an image. The error names it.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    processes = Processes.current()
    own: dict[int, Any] = {}  # what this process found, by batch: columns, or an exception for all processes
    for number, rows in processes.batches(count, batch_size):
        examples = [dataset[i] for i in rows]
        ref, x0, x1, judge = (_stack(examples, key, device) for key in ("ref", "p0", "p1", "judge"))
        if attack is None:
            with torch.no_grad():
                d0, d1 = (distances(metric, each, ref) for each in (x0, x1))
        else:
            others = _next_references(dataset, rows, count, ref) if isinstance(attack, SSA) else None
            objective = RankFlip(metric, ref, x0, x1, judge, perturb, others)
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
    d0_all, d1_all, judge_all = map(np.concatenate, zip(*processes.gather(own), strict=True))
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
    """Measure the pairs of a data set.

    Args:
        metric: the metric, on `device`.
        dataset: the pairs.
        batch_size: how many pairs run at once.
        device: where to compute.
        limit: use only the first pairs, at most this many; by default all.
        progress: called after each batch of this process with the number of its pairs.

    Returns:
        Distances, and the shares of people who saw no difference, each `(N,)`, float64, the same in every
        process of a group.

    Raises:
        DatasetError: a share cannot be read, or the images of a batch differ in size.
        ImageError: an image cannot be read.
        UndefinedDistanceError: the metric gives NaN for an image. The error names it.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    processes = Processes.current()
    own: dict[int, Any] = {}  # what this process found, by batch: columns, or an exception for all processes
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
    d_all, same_all = map(np.concatenate, zip(*processes.gather(own), strict=True))
    return d_all, same_all


def _stack(examples: Sequence[Mapping[str, Any]], key: str, device: torch.device | str) -> Tensor:
    shapes = {tuple(example[key].shape) for example in examples}
    if len(shapes) > 1:
        raise DatasetError(f"the images differ in size, {sorted(shapes)}; measure them with --batch-size 1")
    return torch.stack([example[key] for example in examples]).to(device)


def _next_references(dataset: TwoAFC, rows: range, count: int, ref: Tensor) -> Tensor:
    """Return for each triplet the reference of the next one, for `SSA`; the first follows the last."""
    following = dataset[(rows[-1] + 1) % count]["ref"].to(ref.device)[None]
    if following.shape != ref[-1:].shape:
        following = resize(following, (ref.shape[-2], ref.shape[-1]))
    return torch.cat([ref[1:], following])


def _undefined(metric: Metric, dataset: TwoAFC | JND, row: int) -> UndefinedDistanceError:
    name_of = getattr(dataset, "name_of", "example {}".format)  # training measures other data sets
    return UndefinedDistanceError(f"{metric_name(metric)} gives NaN for {name_of(row)}", row)
