"""Distances of a metric on judged images, before and after an attack.

Data sets are BAPPS, or have its layout (`rlpips.data`). An attack has random draws of its own for each image,
so the numbers depend neither on the batch size nor on the number of processes of `torchrun`. The images of a
batch that have one size run at once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlpips.attacks.base import Attack
from rlpips.attacks.metrics import Metric, distances, metric_name, precompute
from rlpips.attacks.objectives import RankFlip
from rlpips.attacks.ssa import SSA
from rlpips.data.resized import Judgements
from rlpips.errors import UndefinedDistanceError
from rlpips.evaluation.scores import Array, margin
from rlpips.evaluation.worst_examples import WorstImages
from rlpips.images import resize
from rlpips.system.processes import Processes


def measure_2afc(
    metric: Metric,
    dataset: Judgements,
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
        dataset: the triplets, such as `rlpips.data.TwoAFC`. They may differ in size.
        attack: tries to make the metric contradict the judgement.
        perturb: the image that is attacked: 'x0', 'x1', 'ref', or both of 'x0+x1'.
        batch_size: how many triplets run at once. Fewer do where they differ in size.
        device: where to compute.
        limit: use only the first triplets, at most this many; by default all.
        worst: takes the attacked images for which the metric contradicts the judgement most.
        progress: called after each batch of this process with the number of its triplets.

    Returns:
        `d0`, `d1` and `judge`, each `(N,)`, float64, the same in every process of a group.

    Raises:
        DatasetError: a judgement cannot be read, or the images of a triplet differ in size.
        ImageError: an image cannot be read.
        UndefinedDistanceError: the metric gives NaN for an image. The error names it.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))

    def measure(rows: range) -> Array:
        examples = [dataset[i] for i in rows]
        others = _next_references(dataset, rows, count, examples) if isinstance(attack, SSA) else None
        columns = np.empty((3, len(rows)))
        for group in _equal_in_size(examples, "ref"):
            ids = [rows[k] for k in group]
            ref, x0, x1, judge = (
                _stack(examples, key, group, device) for key in ("ref", "p0", "p1", "judge")
            )
            if attack is None:
                with torch.no_grad():
                    known = precompute(metric, ref)
                    d0, d1 = (distances(metric, each, known) for each in (x0, x1))
            else:
                other = None if others is None else torch.stack([others[k] for k in group]).to(device)
                objective = RankFlip(metric, ref, x0, x1, judge, perturb, other)
                try:
                    attacked = attack(objective, objective.x, ids)
                except UndefinedDistanceError as error:
                    raise _undefined(metric, dataset, error.image_id) from error
                with torch.no_grad():
                    d0, d1 = objective.distances(attacked, torch.arange(len(ids), device=ref.device))
            found = _columns(d0, d1, judge)
            _check_defined(metric, dataset, found[0] + found[1], ids)
            if attack is not None and worst is not None:
                worst.add(ids, -margin(*found), attacked)
            columns[:, group] = found
        return columns

    d0_all, d1_all, judge_all = _in_batches(count, batch_size, measure, progress)
    return d0_all, d1_all, judge_all


def measure_jnd(
    metric: Metric,
    dataset: Judgements,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> tuple[Array, Array]:
    """Measure the pairs of a data set.

    Args:
        metric: the metric, on `device`.
        dataset: the pairs, such as `rlpips.data.JND`. They may differ in size.
        batch_size: how many pairs run at once. Fewer do where they differ in size.
        device: where to compute.
        limit: use only the first pairs, at most this many; by default all.
        progress: called after each batch of this process with the number of its pairs.

    Returns:
        Distances, and the shares of people who saw no difference, each `(N,)`, float64, the same in every
        process of a group.

    Raises:
        DatasetError: a share cannot be read, or the images of a pair differ in size.
        ImageError: an image cannot be read.
        UndefinedDistanceError: the metric gives NaN for an image. The error names it.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))

    def measure(rows: range) -> Array:
        examples = [dataset[i] for i in rows]
        columns = np.empty((2, len(rows)))
        for group in _equal_in_size(examples, "p0"):
            p0, p1, same = (_stack(examples, key, group, device) for key in ("p0", "p1", "same"))
            with torch.no_grad():
                found = _columns(distances(metric, p0, p1), same)
            _check_defined(metric, dataset, found[0], [rows[k] for k in group])
            columns[:, group] = found
        return columns

    d_all, same_all = _in_batches(count, batch_size, measure, progress)
    return d_all, same_all


def _in_batches(
    count: int, batch_size: int, measure: Callable[[range], Array], progress: Callable[[int], Any] | None
) -> Array:
    """Measure the batches of this process, until a metric gives NaN; return the columns of all processes."""
    processes = Processes.current()
    own: dict[int, Any] = {}  # what this process found, by batch: columns, or an exception for all processes
    for number, rows in processes.batches(count, batch_size):
        try:
            own[number] = measure(rows)
        except UndefinedDistanceError as error:
            own[number] = error
            break
        if progress is not None:
            progress(len(rows))
    return np.concatenate(processes.gather(own), axis=1)


def _equal_in_size(examples: Sequence[Mapping[str, Any]], key: str) -> Iterator[list[int]]:
    """Yield the positions of the examples that have one size, for each size."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for k, example in enumerate(examples):
        groups.setdefault(tuple(example[key].shape), []).append(k)
    yield from groups.values()


def _stack(
    examples: Sequence[Mapping[str, Any]], key: str, group: Sequence[int], device: torch.device | str
) -> Tensor:
    return torch.stack([examples[k][key] for k in group]).to(device)


def _columns(*values: Tensor) -> Array:
    return np.stack([each.flatten().cpu().double().numpy() for each in values])


def _next_references(
    dataset: Judgements, rows: range, count: int, examples: Sequence[Mapping[str, Any]]
) -> list[Tensor]:
    """Return for each triplet the reference of the next one, for `SSA`; the first follows the last."""
    following = [*(example["ref"] for example in examples[1:]), dataset[(rows[-1] + 1) % count]["ref"]]
    sizes = [tuple(example["ref"].shape[-2:]) for example in examples]
    return [resize(image[None], size)[0] for image, size in zip(following, sizes, strict=True)]


def _check_defined(metric: Metric, dataset: Judgements, values: Array, rows: Sequence[int]) -> None:
    undefined = np.isnan(values)
    if undefined.any():
        raise _undefined(metric, dataset, rows[int(undefined.argmax())])


def _undefined(metric: Metric, dataset: Judgements, row: int) -> UndefinedDistanceError:
    name_of = getattr(dataset, "name_of", "example {}".format)  # training measures other data sets
    return UndefinedDistanceError(f"{metric_name(metric)} gives NaN for {name_of(row)}", row)
