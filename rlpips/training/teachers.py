"""Distances by metrics that a new one learns from."""

import hashlib
import io
import json
from collections.abc import Mapping
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
from rlpips.system.files import check_regular, read_with_digest, shown_path, write_with_digest
from rlpips.system.processes import Processes
from rlpips.system.progress import progress

_BLOCK = 512  # triplets that are measured, and kept, together
_LEAST = 1e-6  # distance below which the logarithm is cut off


def teach(
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
    """Measure both distances of every triplet by all metrics; what is measured is kept and found again.

    Under `torchrun` the processes share the work.

    Args:
        metrics: the teachers by name, on `device`, of images `(N, 3, H, W)` in [-1, 1].
        data: triplets, items with `ref`, `p0` and `p1`.
        folder: where distances are kept, made if there is none.
        description: what the data is, for JSON; distances are found again for the same description only, and
            for the same weights of a teacher.
        batch_size: triplets that run at once.
        device: where to compute.
        workers: processes that read data.
        precision: 'float32' or 'bfloat16', for backbones; sums are in float32.

    Returns:
        Natural logarithms of the distances from `ref` to `p0` and `p1`, `(len(metrics), len(data), 2)`,
        float32.

    Raises:
        CheckpointError: distances that were kept are damaged.
        DatasetError: a teacher gives no finite distance, or images differ in size.
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
                    some = Subset(data, rows)
                    loader = DataLoader(some, batch_size, num_workers=workers, collate_fn=collate)
                    found = torch.cat([_measure(metric, batch, device, precision) for batch in loader])
                    _keep(path, found)
                bar.update(len(rows))
        if processes.count > 1:
            torch.distributed.barrier()
        measured = torch.cat([_kept(path, len(rows)) for path, rows in zip(paths, blocks, strict=True)])
        if not measured.isfinite().all():
            raise DatasetError(f"the teacher {name} gives distances that are not finite")
        logs.append(measured.clamp(min=_LEAST).log())
    return torch.stack(logs)


def choices(logs: Tensor) -> Tensor:
    """Return which image the teachers think nearer, by the geometric mean of their distances.

    Args:
        logs: what `teach` returned.

    Returns:
        `(len(data),)`, float32: 1 where it is `p1`, else 0.
    """
    mean = logs.mean(dim=0)
    return (mean[:, 1] < mean[:, 0]).float()


def _keep(path: Path, measured: Tensor) -> None:
    """Write distances as NumPy does, with a digest behind them, which NumPy does not read."""
    buffer = io.BytesIO()
    np.save(buffer, measured.numpy())
    write_with_digest(path, buffer.getvalue())


def _kept(path: Path, count: int) -> Tensor:
    """Read what `_keep` wrote."""
    check_regular(path)
    content = read_with_digest(path)
    if content is not None:
        measured = torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
        if measured.shape == (count, 2):
            return measured
    raise CheckpointError(
        f"{shown_path(path)} is damaged; delete it to have the teacher's distances measured again"
    )


def _measure(
    metric: Metric, batch: Mapping[str, Tensor], device: str | torch.device, precision: str
) -> Tensor:
    ref, p0, p1 = (batch[name].to(device) for name in ("ref", "p0", "p1"))
    with torch.inference_mode():
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
            ref, p0, p1 = (precompute(metric, each) for each in (ref, p0, p1))
        return torch.stack([distances(metric, p0, ref), distances(metric, p1, ref)], dim=1).float().cpu()
