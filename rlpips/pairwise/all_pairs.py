"""Distances of all pairs: within one batch (`pdist`), or between two (`cdist`)."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlpips.metric.lpips import LPIPS
from rlpips.pairwise.blocks import DEFAULT_MEMORY, distance_blocks
from rlpips.pairwise.embeddings import Embeddings, Images, both_embeddings


@torch.no_grad()
def pdist(
    metric: LPIPS,
    images: Images,
    *,
    normalize: bool = False,
    batch_size: int = 64,
    memory: int = DEFAULT_MEMORY,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Return the distances of all pairs of a batch, in the order of `torch.pdist`: (0, 1), (0, 2), ...

    Args:
        metric: the metric. It needs head weights of at least 0 and `spatial=False`.
        images: `(N, 3, H, W)`, as the metric takes them; or their embeddings `(N, D)`, as `embed` returns
            them.
        normalize: the images are in [0, 1] instead of [-1, 1].
        batch_size: the most images that pass through the backbone at once. `memory` may ask for fewer.
        memory: bytes that may be used beyond the arguments and the result. If the embeddings of all images do
            not fit, some are computed several times. The embeddings of at least two images are held, however
            small `memory` is.
        progress: is called with the number of distances that have been added.

    Returns:
        `(N * (N - 1) / 2,)`, float32, or float64 if the metric or the images are float64. Distances below
        rounding error are set to 0, so copies have distance 0.

    Raises:
        TypeError: `images` are not images or embeddings, or their dtype cannot be used.
        ValueError: the shape is wrong, the images are too small for the backbone or on another device; a head
            of the metric has negative weights, so that the metric is not a squared distance; the metric has
            `spatial=True`, so that it measures maps; `batch_size` or `memory` is not positive.
    """
    embeddings = Embeddings(metric, images, "images", normalize, batch_size, memory)
    count = len(embeddings)
    out = torch.empty(count * (count - 1) // 2, dtype=embeddings.dtype, device=embeddings.device)
    for rows, columns, distances in distance_blocks(embeddings, embeddings, memory):
        i = torch.arange(rows.start, rows.stop, device=embeddings.device)[:, None]
        j = torch.arange(columns.start, columns.stop, device=embeddings.device)
        above = i < j
        out[(i * (2 * count - i - 3) // 2 + j - 1)[above]] = distances[above]
        if progress is not None:
            progress(int(above.sum()))
    return out


@torch.no_grad()
def cdist(
    metric: LPIPS,
    a: Images,
    b: Images,
    *,
    normalize: bool = False,
    batch_size: int = 64,
    memory: int = DEFAULT_MEMORY,
) -> Tensor:
    """Return the distance of each image of one batch to each image of another.

    Args:
        metric: the metric. It needs head weights of at least 0 and `spatial=False`.
        a: `(N, 3, H, W)`, as the metric takes them; or their embeddings `(N, D)`, as `embed` returns them.
        b: `(M, 3, H, W)` of the same height and width, or `(M, D)`.
        normalize: the images are in [0, 1] instead of [-1, 1].
        batch_size: the most images that pass through the backbone at once. `memory` may ask for fewer.
        memory: bytes that may be used beyond the arguments and the result. If the embeddings of all images do
            not fit, some are computed several times. The embeddings of at least two images are held, however
            small `memory` is.

    Returns:
        `(N, M)`, float32, or float64 if the metric or the images are float64. Distances below rounding error
        are set to 0, so copies have distance 0.

    Raises:
        TypeError: `a` or `b` are not images or embeddings, or their dtype cannot be used.
        ValueError: a shape is wrong, images are too small for the backbone or on different devices; the sizes
            of the images differ, or the widths of the embeddings; a head of the metric has negative weights,
            so that the metric is not a squared distance; the metric has `spatial=True`, so that it measures
            maps; `batch_size` or `memory` is not positive.
    """
    first, second = both_embeddings(metric, {"a": a, "b": b}, normalize, batch_size, memory)
    dtype = torch.promote_types(first.dtype, second.dtype)
    out = torch.empty(len(first), len(second), dtype=dtype, device=first.device)
    for rows, columns, distances in distance_blocks(first, second, memory):
        out[rows, columns] = distances
    return out
