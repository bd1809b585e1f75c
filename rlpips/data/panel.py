"""A panel of metrics that vote on triplets: LPIPS and classical ones, by name."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlpips.classical import CLASSICAL, ClassicalMetric
from rlpips.metric.lpips import LPIPS

PANEL = ("lpips-alex", "lpips-vgg", "ssim", "fsim", "vsi", "gmsd", "haarpsi")
"""The metrics that vote by default."""

PanelMetric = Callable[[Tensor, Tensor], Tensor]
"""Takes two batches `(N, 3, H, W)` in [0, 1], distorted images and their references, and returns distances
`(N,)`: smaller is more similar."""

Pixels = npt.NDArray[np.uint8]  # (H, W, 3)
Triplet = tuple[Pixels, Pixels, Pixels]  # ref, p0, p1


def count_votes(panel: Sequence[PanelMetric], triplets: Sequence[Triplet]) -> list[int | None]:
    """Count for each triplet the metrics that find p1 more similar to ref; None if one of them gives NaN."""
    ref, p0, p1 = (
        torch.from_numpy(np.stack(images)).movedim(3, 1).float() / 255
        for images in zip(*triplets, strict=True)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the number of threads may change the last digits, and so a vote
    try:
        with torch.inference_mode():
            to_p0 = torch.stack([metric(p0, ref) for metric in panel])
            to_p1 = torch.stack([metric(p1, ref) for metric in panel])
    finally:
        torch.set_num_threads(threads)
    defined = (to_p0.isfinite() & to_p1.isfinite()).all(0).tolist()
    counts = (to_p1 < to_p0).sum(0).tolist()
    return [count if known else None for count, known in zip(counts, defined, strict=True)]


def try_panel(names: Sequence[str], size: int) -> None:
    """Try each metric on patches of this size, before workers start, so that errors are easy to read.

    Raises:
        MissingExtraError: a metric needs `pip install 'rlpips[classical]'`.
        ValueError: a metric cannot measure images of this size.
        WeightsUnavailableError: a metric's weights are not on this machine and could not be downloaded.
    """
    rng = np.random.default_rng(0)
    ref, p0, p1 = rng.integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    for name in names:
        metric = METRICS[name]()
        try:
            count_votes([metric], [(ref, p0, p1)])
        except (ValueError, RuntimeError, AssertionError) as error:
            raise ValueError(f"the metric {name!r} cannot measure {size} x {size} pixels: {error}") from error


def _lpips(net: str) -> PanelMetric:
    metric = LPIPS(net=net, check_range=False)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return metric(a, b, normalize=True).flatten()

    return distance


def _classical(name: str) -> PanelMetric:
    return ClassicalMetric(name).of_unit_images


METRICS: dict[str, Callable[[], PanelMetric]] = {
    "lpips-alex": lambda: _lpips("alex"),
    "lpips-vgg": lambda: _lpips("vgg"),
    "lpips-squeeze": lambda: _lpips("squeeze"),
    **{name: partial(_classical, name) for name in CLASSICAL},
}
"""For each name a function that builds the metric."""
