"""The triplets of each step: which they are, how they are turned, and each process's share of them.

The order and the turns are drawn from the recipe's seed and the number of the epoch, step or triplet alone,
so a run that is resumed sees what it would have seen without the interruption.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rlpips.data.judgements import collate
from rlpips.errors import DatasetError
from rlpips.system.processes import Processes
from rlpips.training.recipe import Recipe
from rlpips.training.teachers import TeacherTargets
from rlpips.training.triplet_batch import Triplets

Items = Dataset[dict[str, Any]]


def read_batches(
    recipe: Recipe, data: Items, start: int, per_epoch: int, workers: int, processes: Processes
) -> Iterator[dict[str, Any]]:
    """Read this process's share of the batch of each step.

    Args:
        recipe: the recipe.
        data: the triplets.
        start: the number of the first step, from 0.
        per_epoch: the number of steps in an epoch.
        workers: processes that read data.
        processes: this process among those that train.
    """

    def rows() -> Iterator[list[int]]:
        epochs = itertools.count() if recipe.minutes else range(recipe.total_epochs)
        for epoch in itertools.islice(epochs, start // per_epoch, None):
            order = np.random.default_rng((recipe.seed, epoch)).permutation(len(data))  # type: ignore[arg-type]
            first = start - epoch * per_epoch if epoch == start // per_epoch else 0
            for k in range(first, per_epoch):
                batch = order[k * recipe.batch : (k + 1) * recipe.batch]
                yield batch[processes.rank :: processes.count].tolist()

    return iter(DataLoader(data, batch_sampler=rows(), num_workers=workers, collate_fn=collate))


def to_triplets(
    batch: Mapping[str, Any],
    targets: TeacherTargets | None,
    recipe: Recipe,
    step: int,
    device: torch.device,
    processes: Processes,
) -> Triplets:
    """Turn the images of a batch, add the teachers' targets, and move all of it to a device.

    Raises:
        DatasetError: a triplet has no judgement, and there are no teachers.
    """
    images = [batch[name] for name in ("ref", "p0", "p1")]
    positions = torch.arange(processes.rank, recipe.batch, processes.count)
    if recipe.symmetries and targets is None:  # with teachers, `TurnedTriplets` has turned them already
        draws = np.random.default_rng((recipe.seed, step, 1)).integers((4, 2), size=(recipe.batch, 2))
        turns = draws[positions]
        images = [
            torch.stack([_turn(image, *map(int, turn)) for image, turn in zip(each, turns, strict=True)])
            for each in images
        ]
    judge = batch["judge"].flatten().float()
    wanted = None
    if targets is not None:
        wanted = targets.log_distances[batch["index"]]
        judge = torch.where(judge.isnan(), targets.choices[batch["index"]], judge)
    if judge.isnan().any():
        raise DatasetError("the triplets have no judgements, and there are no teachers")
    ref, x0, x1, judge, positions = (each.contiguous().to(device) for each in (*images, judge, positions))
    wanted = None if wanted is None else wanted.to(device)
    other = _next_references(ref, processes) if recipe.attack == "ssa" else ref
    return Triplets(ref, x0, x1, judge, wanted, other, positions, recipe.batch)


class TurnedTriplets(Dataset[dict[str, Any]]):
    """Triplets that are each turned and mirrored at random, but always in the same way.

    The metric must see a triplet as its teachers saw it: LPIPS' distances change by about a tenth when images
    are turned.
    """

    def __init__(self, data: Items, seed: int) -> None:
        self._data, self._seed = data, seed

    def __len__(self) -> int:
        return len(self._data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self._data[index]
        turn, mirror = map(int, np.random.default_rng((self._seed, item["index"], 3)).integers((4, 2)))
        return {**item, **{name: _turn(item[name], turn, mirror) for name in ("ref", "p0", "p1")}}


def _turn(image: Tensor, turn: int, mirror: int) -> Tensor:
    """Turn an image `(3, H, W)` by right angles, by half turns only if it is not square, and mirror it."""
    if image.shape[-2] != image.shape[-1]:
        turn = turn // 2 * 2
    turned = torch.rot90(image, turn, (-2, -1))
    return turned.flip(-1) if mirror else turned


def _next_references(ref: Tensor, processes: Processes) -> Tensor:
    """Return the reference of the triplet that follows each in the step's batch, over all processes."""
    every = [ref]
    if processes.count > 1:
        every = [torch.empty_like(ref) for _ in range(processes.count)]
        torch.distributed.all_gather(every, ref)
    return torch.stack(every, dim=1).flatten(0, 1).roll(-1, dims=0)[processes.rank :: processes.count]
