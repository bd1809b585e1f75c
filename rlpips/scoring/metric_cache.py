"""Metrics that are built once and used again."""

import functools
from os import PathLike
from pathlib import Path

import torch

from rlpips.hub import registry
from rlpips.metric.lpips import LPIPS


def cached_metric(net: str, weights: str | PathLike[str], version: str, device: torch.device) -> LPIPS:
    """Build a metric, or return the one that was built earlier with the same arguments.

    If `weights` is a file that has been written again since, the metric is built again.

    Args:
        net: the backbone: 'alex', 'vgg' or 'squeeze'.
        weights: the name of weights, such as 'robust', or the path of a checkpoint.
        version: the version of LPIPS' heads: '0.1' or '0.0'.
        device: where the metric computes.

    Raises:
        FileNotFoundError: `weights` is the path of a file that does not exist.
        ValueError: there are no weights for `net` by this name or version, or the file is not a checkpoint
            for `net`.
        WeightsUnavailableError: weights are not on this machine and could not be fetched.
    """
    file = registry.file_of(weights)
    if file is None:
        return _build(net, str(weights), version, device, None)
    file = file.resolve()
    state = file.stat() if file.exists() else None  # if it does not exist, building raises the error
    stamp = state and (state.st_ino, state.st_size, state.st_mtime_ns)
    return _build(net, file, version, device, stamp)


@functools.lru_cache(maxsize=4)
def _build(
    net: str, weights: str | Path, version: str, device: torch.device, stamp: tuple[int, ...] | None
) -> LPIPS:
    del stamp  # it only tells files apart that were written at different times
    return LPIPS(net=net, weights=weights, version=version, check_range=False).to(device)
