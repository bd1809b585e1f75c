"""Certified decisions on people's triplets, and how often people agree with them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlpips.attacks.metrics import distances, metric_name
from rlpips.data.resized import Judgements
from rlpips.errors import UndefinedDistanceError
from rlpips.evaluation.certify import Certified
from rlpips.evaluation.scores import Array, accuracy
from rlpips.images import resize
from rlpips.system.processes import Processes


@dataclass(frozen=True)
class CertifiedTriplets:
    """What a metric and its smoothed version say of N triplets, and what people say.

    Attributes:
        d0: the metric's own distances of the first images to their references, without noise, `(N,)`.
        d1: those of the second images.
        judge: the share of people who chose the second image, `(N,)`.
        nearer: the answer of the smoothed metric: 0 for the first image, 1 for the second, `(N,)`.
        votes: how many noisy versions gave this answer, `(N,)`.
        radius: no change shorter than this changes the answer; 0 where the smoothed metric abstains, `(N,)`.
    """

    d0: Array
    d1: Array
    judge: Array
    nearer: Array
    votes: Array
    radius: Array

    def natural(self) -> Array:
        """Return 1 where the metric itself agrees with most people, `(N,)`: its `accuracy`."""
        return accuracy(self.d0, self.d1, self.judge)

    def certified(self, radius: float = 0.0) -> Array:
        """Return 1 where most people agree with the answer, and no change up to a length changes it, `(N,)`.

        With the radius 0 the mean is the accuracy of the smoothed metric. Where it abstains it counts as
        wrong. Where people are tied, an answer counts one half.
        """
        return accuracy(self.nearer, 1 - self.nearer, self.judge) * (self.radius > radius)


def measure_certified(
    certified: Certified,
    dataset: Judgements,
    perturb: str = "ref",
    *,
    size: int | None = None,
    rows: range | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int], Any] | None = None,
) -> CertifiedTriplets:
    """Certify the decisions of a metric on the triplets of a data set.

    Each triplet has random draws of its own. So its result depends neither on other triplets nor on the batch
    size or the number of processes of `torchrun`.

    Args:
        certified: the smoothed metric, on `device`.
        dataset: the triplets.
        perturb: the image that carries noise, and may change: 'ref', 'x0', 'x1', or 'all' three.
        size: resize the images to this height and width first, bilinearly. Radii are then of these images.
        rows: the triplets to measure, by default all.
        device: where to compute.
        progress: called after each triplet of this process with 1.

    Returns:
        The results, the same in every process of a group.

    Raises:
        DatasetError: a judgement cannot be read.
        ImageError: an image cannot be read.
        UndefinedDistanceError: the metric gives NaN for an image. The error names it.
    """
    rows = range(len(dataset)) if rows is None else rows
    processes = Processes.current()
    own: dict[
        int, Any
    ] = {}  # what this process found, by triplet: numbers, or an exception for all processes
    for number, each in processes.batches(len(rows), 1):
        row = rows[each.start]
        item = dataset[row]
        ref, x0, x1 = (_batch(item[name], size, device) for name in ("ref", "p0", "p1"))
        with torch.no_grad():
            d0, d1 = (float(distances(certified.metric, x, ref)) for x in (x0, x1))
        if np.isnan(d0 + d1):
            own[number] = _undefined(certified, dataset, row)
            break
        try:
            decision = certified.decide(ref, x0, x1, perturb, image_ids=[row])
        except UndefinedDistanceError:
            own[number] = _undefined(certified, dataset, row, "a noisy version of ")
            break
        answer = (decision.nearer, decision.votes, decision.radius)
        own[number] = [d0, d1, float(item["judge"]), *(float(column[0]) for column in answer)]
        if progress is not None:
            progress(1)
    return CertifiedTriplets(*np.array(processes.gather(own), dtype=np.float64).reshape(-1, 6).T)


def _batch(image: Tensor, size: int | None, device: torch.device | str) -> Tensor:
    batch = image[None].to(device)
    return batch if size is None else resize(batch, (size, size))


def _undefined(certified: Certified, dataset: Judgements, row: int, what: str = "") -> UndefinedDistanceError:
    name_of = getattr(dataset, "name_of", "triplet {}".format)  # a data set of somebody else
    return UndefinedDistanceError(f"{metric_name(certified.metric)} gives NaN for {what}{name_of(row)}", row)
