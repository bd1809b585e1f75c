"""Distances of a metric on pairs that people scored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlpips.attacks.metrics import Metric, distances, metric_name, precompute
from rlpips.data.judgement_tables import MOS
from rlpips.errors import UndefinedDistanceError
from rlpips.evaluation.scores import Array
from rlpips.system.processes import Processes


def measure_mos(
    metric: Metric,
    dataset: MOS,
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    progress: Callable[[int], Any] | None = None,
) -> tuple[Array, Array]:
    """Measure the pairs of a data set.

    A batch holds pairs of one reference, which passes through the metric's backbone once for all of them. So
    images of several sizes need nothing special.

    Args:
        metric: the metric, on `device`.
        dataset: the pairs.
        batch_size: how many pairs run at once.
        device: where to compute.
        progress: called after each batch of this process with the number of its pairs.

    Returns:
        Distances, and people's scores such that higher is worse, each `(N,)`, float64, in the order of the
        table, the same in every process of a group.

    Raises:
        DatasetError: the images of a pair differ in size.
        ImageError: an image cannot be read.
        UndefinedDistanceError: the metric gives NaN for an image. The error names it.
    """
    batches = _batches(dataset, batch_size)
    processes = Processes.current()
    own: dict[
        int, Any
    ] = {}  # what this process found, by batch: distances, or an exception for all processes
    for number, _ in processes.batches(len(batches), 1):
        rows = batches[number]
        examples = [dataset[i] for i in rows]
        distorted = torch.stack([example["dist"] for example in examples]).to(device)
        with torch.no_grad():
            reference = precompute(metric, examples[0]["ref"][None].to(device))
            if isinstance(reference, Tensor):  # a metric without a backbone may want two equal batches
                reference = reference.expand_as(distorted)
            d = distances(metric, distorted, reference).cpu().double().numpy()
        own[number] = d
        undefined = np.isnan(d)
        if undefined.any():
            row = rows[int(undefined.argmax())]
            own[number] = UndefinedDistanceError(
                f"{metric_name(metric)} gives NaN for {dataset.name_of(row)}", row
            )
            break
        if progress is not None:
            progress(len(rows))
    measured = np.empty(len(dataset))
    for rows, d in zip(batches, processes.gather(own), strict=True):
        measured[rows] = d
    return measured, dataset.worse


def _batches(dataset: MOS, batch_size: int) -> list[list[int]]:
    """Split the pairs into batches of one reference."""
    by_reference: dict[Path, list[int]] = {}
    for i in range(len(dataset)):
        by_reference.setdefault(dataset.files_of(i)["ref"], []).append(i)
    return [
        rows[first : first + batch_size]
        for rows in by_reference.values()
        for first in range(0, len(rows), batch_size)
    ]
