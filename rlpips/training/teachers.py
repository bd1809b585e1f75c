"""Distances by metrics that a new one learns from, its teachers."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from rlpips.attacks.metrics import Metric, distances, precompute
from rlpips.data.judgements import collate
from rlpips.errors import CheckpointError, DatasetError
from rlpips.hub.digests import metric_digest
from rlpips.metric.lpips import LPIPS
from rlpips.system.files import check_regular, read_with_digest, shown_path, write_with_digest
from rlpips.system.processes import Processes
from rlpips.system.progress import progress

_BLOCK = 512  # triplets whose distances are kept in one file
_SMALLEST = 1e-6  # smaller distances count as this
_SCALED = 512  # triplets that fix the scale of distances, at most


@dataclass(frozen=True)
class TeacherTargets:
    """What a metric learns from its teachers about each triplet.

    Attributes:
        log_distances: `(N, 2)`, natural logarithms of the first teacher's distances from `ref` to `p0` and
            `p1`.
        choices: `(N,)`, 1 if all teachers together think that `p1` is nearer, else 0; see `choices`.
    """

    log_distances: Tensor
    choices: Tensor


def measure_teachers(
    metrics: Mapping[str, Metric],
    data: Dataset[dict[str, Any]],
    folder: Path,
    description: Mapping[str, Any],
    *,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    workers: int = 0,
    precision: str = "float32",
) -> Tensor:
    """Measure both distances of every triplet by every teacher, or read those that were measured before.

    Under `torchrun` the processes share the work.

    Args:
        metrics: the teachers by name, on `device`, of images `(N, 3, H, W)` in [-1, 1].
        data: triplets, items with `ref`, `p0` and `p1`.
        folder: where distances are kept. It is made if it does not exist.
        description: what the data is, for JSON. Distances are read again only for the same description, and
            for the same weights of the teacher.
        batch_size: triplets that run at once.
        device: where to compute.
        workers: processes that read data.
        precision: 'float32' or 'bfloat16', for backbones; sums are in float32.

    Returns:
        Natural logarithms of the distances from `ref` to `p0` and `p1`, `(len(metrics), len(data), 2)`,
        float32. Distances below 1e-6 count as 1e-6.

    Raises:
        CheckpointError: distances that were kept are damaged.
        DatasetError: a teacher's distance is not finite, or images differ in size.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processes = Processes.current()
    count = len(data)  # type: ignore[arg-type]
    blocks = [range(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
    logs = []
    for name, metric in metrics.items():
        what = json.dumps([name, metric_digest(metric), precision, count, description], sort_keys=True)
        key = hashlib.sha256(what.encode()).hexdigest()[:12]
        paths = [folder / f"{key}-{rows.start:08d}-{len(rows)}.npy" for rows in blocks]
        with progress(f"teacher {name}", total=count, unit="triplet", hidden=processes.rank > 0) as bar:
            for number, (path, rows) in enumerate(zip(paths, blocks, strict=True)):
                if number % processes.count == processes.rank and not path.exists():
                    block = Subset(data, rows)
                    loader = DataLoader(block, batch_size, num_workers=workers, collate_fn=collate)
                    found = torch.cat([_measure(metric, batch, device, precision) for batch in loader])
                    _write_distances(path, found)
                bar.update(len(rows))
        processes.barrier()
        measured = torch.cat(
            [_read_distances(path, len(rows)) for path, rows in zip(paths, blocks, strict=True)]
        )
        if not measured.isfinite().all():
            raise DatasetError(f"the teacher {name} gives distances that are not finite")
        logs.append(measured.clamp(min=_SMALLEST).log())
    return torch.stack(logs)


def choices(logs: Tensor) -> Tensor:
    """Return which image the teachers think is nearer, by the geometric mean of their distances.

    Args:
        logs: log distances `(T, N, 2)` by T teachers, from `measure_teachers`.

    Returns:
        `(N,)`, float32: 1 if `p1` is nearer, else 0.
    """
    mean = logs.mean(dim=0)
    return (mean[:, 1] < mean[:, 0]).float()


class ChosenByTeachers(Dataset[dict[str, Any]]):
    """Triplets whose judgements are the teachers' choices."""

    def __init__(self, data: Dataset[dict[str, Any]], chosen: Tensor) -> None:
        self._data, self._chosen = data, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._data[index], "judge": self._chosen[index].view(1, 1, 1)}


@torch.no_grad()
def match_scale(metric: LPIPS, data: Dataset[dict[str, Any]], wanted: Tensor) -> None:
    """Scale a metric's heads so that its distances have the size of a teacher's; no ranking changes.

    Afterwards the median ratio between the teacher's distances and the metric's is 1.

    Args:
        metric: the metric; it is put into eval mode.
        data: triplets, of which at most 512 are measured, evenly spaced.
        wanted: the teacher's log distances from `ref` to `p0` and `p1`, `(len(data), 2)`.
    """
    metric.eval()
    rows = range(0, len(wanted), -(-len(wanted) // _SCALED))
    device = metric.like.device
    own = []
    for batch in DataLoader(Subset(data, rows), 32, collate_fn=collate):
        ref, p0, p1 = (batch[name].to(device) for name in ("ref", "p0", "p1"))
        own.append(torch.stack([distances(metric, p0, ref), distances(metric, p1, ref)], dim=1).cpu())
    ratio = wanted[list(rows)].exp() / torch.cat(own).clamp(min=_SMALLEST)
    for lin in metric.lins:
        lin.channel_weights.mul_(ratio.median())  # type: ignore[operator]


def _write_distances(path: Path, measured: Tensor) -> None:
    """Write distances `(N, 2)` as NumPy does, with a digest behind them, which NumPy does not read."""
    buffer = io.BytesIO()
    np.save(buffer, measured.numpy())
    write_with_digest(path, buffer.getvalue())


def _read_distances(path: Path, count: int) -> Tensor:
    check_regular(path)
    content = read_with_digest(path)
    if content is not None:
        measured = torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
        if measured.shape == (count, 2):
            return measured
    raise CheckpointError(
        f"{shown_path(path)} is damaged; delete it to measure the teacher's distances again"
    )


def _measure(
    metric: Metric, batch: Mapping[str, Tensor], device: str | torch.device, precision: str
) -> Tensor:
    ref, p0, p1 = (batch[name].to(device) for name in ("ref", "p0", "p1"))
    with torch.inference_mode():
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
            ref, p0, p1 = (precompute(metric, each) for each in (ref, p0, p1))
        return torch.stack([distances(metric, p0, ref), distances(metric, p1, ref)], dim=1).float().cpu()
