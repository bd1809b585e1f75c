"""Distances between images of which some carry Gaussian noise, many draws at a time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlpips.attacks.metrics import Metric, distances, precompute
from rlpips.attacks.random_streams import RandomStreams
from rlpips.evaluation.scores import Array


def noisy_distances(
    metric: Metric,
    images: Mapping[str, Tensor],
    pairs: Sequence[tuple[str, str]],
    noisy: Sequence[str],
    sigma: float,
    count: int,
    streams: RandomStreams,
    batch_size: int,
) -> Array:
    """Measure the distances of pairs of images in each of many draws of noise.

    In each draw a noisy image runs through the backbone once, and all others only once for all draws. Noisy
    images are not clipped to the range of images, because a certificate needs the same noise around every
    image.

    Args:
        metric: the metric, on the device of the images.
        images: images `(1, 3, H, W)` in [-1, 1], of one size, by name.
        pairs: the pairs to measure, by the names of their images.
        noisy: the names of the images that carry noise, independent of each other.
        sigma: standard deviation of the noise, on the [0, 1] scale.
        count: the number of draws.
        streams: of one image. Draws come from it one by one, so the batch size does not change them.
        batch_size: how many draws run at once.

    Returns:
        `(count, len(pairs))`, float64.
    """
    with torch.no_grad():
        fixed = {name: precompute(metric, image) for name, image in images.items() if name not in noisy}
        known = {(a, b): distances(metric, fixed[a], fixed[b]) for a, b in pairs if a in fixed and b in fixed}
        like = torch.cat([images[name] for name in noisy])
        first = torch.zeros(min(count, batch_size), dtype=torch.int64, device=like.device)
        repeated = {name: each[first] for name, each in fixed.items()}  # each image once for each draw
        measured = []
        with _range_unchecked(metric):
            for start in range(0, count, batch_size):
                index = first[: count - start]
                drawn = like + 2 * sigma * streams.normal(like.expand(len(index), *like.shape), index)
                runs = {name: each[: len(index)] for name, each in repeated.items()}
                runs |= {name: precompute(metric, drawn[:, k]) for k, name in enumerate(noisy)}
                columns = [
                    known[a, b].expand(len(index)) if (a, b) in known else distances(metric, runs[a], runs[b])
                    for a, b in pairs
                ]
                measured.append(torch.stack(columns, dim=1))
    return np.asarray(torch.cat(measured).cpu().double().numpy(), dtype=np.float64)


@contextmanager
def _range_unchecked(metric: Metric) -> Iterator[None]:
    """Let a metric take images with values outside of [-1, 1] without a warning."""
    parts: Iterable[Any] = metric.modules() if isinstance(metric, nn.Module) else [metric]
    checking = [part for part in parts if getattr(part, "check_range", None) is True]
    try:
        for part in checking:
            part.check_range = False
        yield
    finally:
        for part in checking:
            part.check_range = True
