"""Distances by metrics that a new one learns from."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from rlpips.errors import DatasetError
from rlpips.files import write_atomically
from rlpips.objectives import Metric, activated, distances

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

    Args:
        metrics: the teachers by name, on `device`, of images `(N, 3, H, W)` in [-1, 1].
        data: triplets, items with `ref`, `p0` and `p1`.
        folder: where distances are kept, made if there is none.
        description: what the data is, for JSON; distances are found again for the same description only.
        batch_size: triplets that run at once.
        device: where to compute.
        workers: processes that read data.
        precision: 'float32' or 'bfloat16', for backbones; sums are in float32.

    Returns:
        Natural logarithms of the distances from `ref` to `p0` and `p1`, `(len(metrics), len(data), 2)`,
        float32.

    Raises:
        DatasetError: a teacher gives no finite distance.
        OSError: the folder cannot be written.
    """
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    count = len(data)  # type: ignore[arg-type]
    logs = []
    for name, metric in metrics.items():
        key = hashlib.sha256(
            json.dumps([name, precision, count, description], sort_keys=True).encode()
        ).hexdigest()[:12]
        blocks = []
        with tqdm(desc=f"teacher {name}", total=count, unit="triplet", disable=None) as bar:
            for start in range(0, count, _BLOCK):
                rows = range(start, min(start + _BLOCK, count))
                file = folder / f"{key}-{start:08d}-{len(rows)}.npy"
                if not file.exists():
                    loader = DataLoader(Subset(data, rows), batch_size, num_workers=workers)
                    found = torch.cat([_measure(metric, batch, device, precision) for batch in loader])
                    _save(file, found)
                blocks.append(torch.from_numpy(np.load(file)))
                bar.update(len(rows))
        measured = torch.cat(blocks)
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


def _measure(
    metric: Metric, batch: Mapping[str, Tensor], device: str | torch.device, precision: str
) -> Tensor:
    ref, p0, p1 = (batch[name].to(device) for name in ("ref", "p0", "p1"))
    with torch.inference_mode():
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
            ref, p0, p1 = (activated(metric, each) for each in (ref, p0, p1))
        return torch.stack([distances(metric, p0, ref), distances(metric, p1, ref)], dim=1).float().cpu()


def _save(file: Path, found: Tensor) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, found.numpy())
    write_atomically(file, buffer.getvalue())
