"""Nearest neighbours in a gallery of images."""

import math

import torch
from torch import Tensor

from rlpips.metric.lpips import LPIPS
from rlpips.pairwise.blocks import DEFAULT_MEMORY, distance_blocks
from rlpips.pairwise.embeddings import Images, both_embeddings


@torch.no_grad()
def nearest(
    metric: LPIPS,
    queries: Images,
    gallery: Images,
    k: int = 1,
    *,
    normalize: bool = False,
    batch_size: int = 64,
    memory: int = DEFAULT_MEMORY,
) -> tuple[Tensor, Tensor]:
    """Find the `k` images of a gallery that are nearest to each query.

    Args:
        metric: the metric. It needs head weights of at least 0 and `spatial=False`.
        queries: `(N, 3, H, W)`, as the metric takes them; or their embeddings `(N, D)`, as `embed` returns
            them.
        gallery: `(M, 3, H, W)` of the same height and width, or `(M, D)`.
        k: how many images to find for each query.
        normalize: the images are in [0, 1] instead of [-1, 1].
        batch_size: the most images that pass through the backbone at once. `memory` may ask for fewer.
        memory: bytes that may be used beyond the arguments and the result. If the embeddings of all images do
            not fit, some are computed several times. The embeddings of at least two images are held, however
            small `memory` is.

    Returns:
        Distances `(N, k)`, the smallest first, in float32, or float64 if the metric or the images are
        float64; and the positions of these images in the gallery, `(N, k)`, int64. The order among equal
        distances is not defined.

    Raises:
        TypeError: `queries` or `gallery` are not images or embeddings, or their dtype cannot be used.
        ValueError: a shape is wrong, images are too small for the backbone or on different devices; the sizes
            of the images differ, or the widths of the embeddings; a head of the metric has negative weights,
            so that the metric is not a squared distance; the metric has `spatial=True`, so that it measures
            maps; `batch_size` or `memory` is not positive; `k` is not in 1 ... M; a distance is not finite,
            for example because an image holds NaN.
    """
    named = {"queries": queries, "gallery": gallery}
    first, second = both_embeddings(metric, named, normalize, batch_size, memory)
    if not 1 <= k <= len(second):
        raise ValueError(f"k={k} must be at least 1 and at most the size of the gallery, {len(second)}")
    dtype = torch.promote_types(first.dtype, second.dtype)
    best = torch.full((len(first), k), math.inf, dtype=dtype, device=first.device)
    positions = torch.full((len(first), k), -1, device=first.device)
    # Whether each image has a finite distance to anything, and whether all distances are finite.
    has_finite = [torch.zeros(len(side), dtype=torch.bool, device=first.device) for side in (first, second)]
    all_finite = torch.ones((), dtype=torch.bool, device=first.device)
    for rows, columns, distances in distance_blocks(first, second, memory):
        finite = distances.isfinite()
        has_finite[0][rows] |= finite.any(dim=1)
        has_finite[1][columns] |= finite.any(dim=0)
        all_finite &= finite.all()
        found, position = distances.topk(min(k, distances.shape[1]), largest=False)
        found = torch.cat([best[rows], found], dim=1)
        position = torch.cat([positions[rows], position + columns.start], dim=1)
        best[rows], order = found.topk(k, largest=False)
        positions[rows] = position.gather(1, order)
    if not all_finite:
        for name, finite in zip(named, has_finite, strict=True):
            if not finite.all():
                raise ValueError(
                    f"{name}[{int((~finite).int().argmax())}] is at no finite distance from anything"
                )
        raise ValueError(
            "some distances of queries from the gallery are not finite: embeddings are too large"
        )
    return best, positions
