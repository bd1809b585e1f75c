"""Distances among many images, each of which goes through the backbone once: embeddings, pairs, neighbours.

LPIPS is a sum of squares: of the differences of activations scaled to unit length, weighed by the heads,
averaged over space. So the vector of all those activations of an image, each times the root of its weight, is
an embedding whose squared Euclidean distances are the metric. It goes into whatever searches vectors, FAISS
for one: `examples/near_duplicates.py`.

Distances are taken from the lengths and products of embeddings, `|a|^2 + |b|^2 - 2 ab`, in float64, where
what cancels for near-duplicates costs nothing that the embeddings hold in float32.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlpips.metric.formula import EPS, at_least_float32
from rlpips.metric.heads import unchanged_weights
from rlpips.metric.inputs import check_image
from rlpips.metric.lpips import LPIPS

MEMORY = 1 << 30  # bytes
_STEP = 256  # columns of a block: enough that a product costs more than what surrounds it
_WIDTH = 512  # the fewest values of an embedding that are in float64 at once
_PASS = 5  # embeddings' worth of memory that an image takes in the backbone and on the way to its embedding


class Images(Protocol):
    """A batch of images, `(N, 3, H, W)`: a tensor, or what reads slices of itself as they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole batch."""

    def __getitem__(self, part: slice, /) -> Tensor:
        """Return some of the images, `(n, 3, H, W)`; of the empty slice `(0, 3, H, W)`."""


@dataclass(frozen=True)
class Projection:
    """A random linear map of embeddings to `dim` values, which keeps squared distances but for noise.

    Squared distances of what it returns are those of the embeddings on average over seeds, with a standard
    deviation of at most `sqrt(2 / dim)` of themselves: 4.4 % with 1024 values. The values of an embedding
    are shuffled, given random signs, and added up in `dim` groups of equal size: a count sketch
    (Charikar et al. 2002, "Finding frequent items in data streams") whose groups are balanced. That costs as
    much as reading the embedding.

    The map depends on `dim`, `seed` and the embeddings' width alone.

    Args:
        dim: how many values remain.
        seed: another gives another map; only embeddings of one map may be compared.

    Raises:
        ValueError: `dim` is less than 1.

    >>> Projection(16)(torch.ones(2, 1000)).shape
    torch.Size([2, 16])
    """

    dim: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim={self.dim} must be at least 1")

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Map `(N, D)`, floating point, to `(N, dim)` of the same dtype and device."""
        source, signs = (each.to(embeddings.device) for each in _draw(embeddings.shape[1], self))
        signed = embeddings[:, source] * signs.to(embeddings.dtype)
        return signed.view(len(signed), -1, self.dim).sum(dim=1)


@functools.lru_cache(maxsize=4)
def _draw(width: int, projection: Projection) -> tuple[Tensor, Tensor]:
    """Return which value comes where and with what sign, so many of them that all groups are full."""
    generator = torch.Generator().manual_seed(projection.seed)
    count = -(-width // projection.dim) * projection.dim
    order = torch.randperm(count, generator=generator)
    signs = torch.randint(2, (count,), generator=generator, dtype=torch.int8) * 2 - 1
    signs[order >= width] = 0
    return order.clamp(max=width - 1), signs


@torch.no_grad()
def embed(
    metric: LPIPS,
    images: Images,
    *,
    normalize: bool = False,
    batch_size: int = 16,
    projection: Projection | None = None,
) -> Tensor:
    """Return vectors whose squared Euclidean distances are the metric: `(a - b).square().sum()`.

    Args:
        metric: with heads that are not negative. Dropout counts as switched off.
        images: `(N, 3, H, W)`, as for the metric.
        normalize: the images are in [0, 1].
        batch_size: the most images that run at once.
        projection: applied to what is returned.

    Returns:
        `(N, D)`, contiguous, without gradients, float32, or float64 where the metric or the images are. For
        each layer, the values of all channels at the first position, then at the next. D grows with the size
        of the images: 31872 for AlexNet and 64 x 64 pixels. With a projection `(N, dim)`.

    Raises:
        TypeError: not images, or not of a usable dtype.
        ValueError: a wrong shape, images too small for the backbone, wrong device; a weight of a head is
            negative, so that the metric is no distance of vectors; the metric is spatial, so that it measures
            maps.
    """
    side = _Side(metric, images, "images", normalize, batch_size)
    if side.embedded:
        raise ValueError(f"images must have shape (N, 3, H, W), got {tuple(images.shape)}")
    if projection is None:
        return side[0 : len(side)]
    out = torch.empty(len(side), projection.dim, dtype=side.dtype, device=side.device)
    for part in _parts(0, len(side), batch_size):
        out[part] = projection(side[part])
    return out


@torch.no_grad()
def pdist(
    metric: LPIPS,
    images: Images,
    *,
    normalize: bool = False,
    batch_size: int = 64,
    memory: int = MEMORY,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Return the distances of all pairs of a batch, in the order of `torch.pdist`: (0, 1), (0, 2), ...

    Args:
        metric: as for `embed`.
        images: `(N, 3, H, W)`, as for the metric; or `(N, D)`, what `embed` made of them.
        normalize: the images are in [0, 1].
        batch_size: the most images that run at once, fewer where `memory` asks for it.
        memory: bytes that may be held beyond the arguments and the result. Where the embeddings of all
            images do not fit, some are made several times. At least two images' embeddings are held.
        progress: is called with the number of distances that have been added.

    Returns:
        `(N * (N - 1) / 2,)`, float32, or float64 where the metric or the images are. Less than rounding may
        move one image by counts as 0, so that copies are at distance 0.

    Raises:
        TypeError: as from `embed`.
        ValueError: as from `embed`; `batch_size` or `memory` is not positive.
    """
    side = _Side(metric, images, "images", normalize, batch_size, memory)
    count = len(side)
    out = torch.empty(count * (count - 1) // 2, dtype=side.dtype, device=side.device)
    for rows, columns, distances in _blocks(side, side, memory):
        i = torch.arange(rows.start, rows.stop, device=side.device)[:, None]
        j = torch.arange(columns.start, columns.stop, device=side.device)
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
    memory: int = MEMORY,
) -> Tensor:
    """Return the distances of each image of one batch from each of another.

    Args:
        metric: as for `embed`.
        a: `(N, 3, H, W)`, as for the metric; or `(N, D)`, what `embed` made of them.
        b: `(M, 3, H, W)` of the same height and width, or `(M, D)`.
        normalize: the images are in [0, 1].
        batch_size: as for `pdist`.
        memory: as for `pdist`.

    Returns:
        `(N, M)`, of the dtype that `pdist` returns.

    Raises:
        TypeError: as from `embed`.
        ValueError: as from `pdist`; the sizes of the images differ, or the widths of embeddings.
    """
    first, second = _sides(metric, {"a": a, "b": b}, normalize, batch_size, memory)
    dtype = torch.promote_types(first.dtype, second.dtype)
    out = torch.empty(len(first), len(second), dtype=dtype, device=first.device)
    for rows, columns, distances in _blocks(first, second, memory):
        out[rows, columns] = distances
    return out


@torch.no_grad()
def nearest(
    metric: LPIPS,
    queries: Images,
    gallery: Images,
    k: int = 1,
    *,
    normalize: bool = False,
    batch_size: int = 64,
    memory: int = MEMORY,
) -> tuple[Tensor, Tensor]:
    """Find the `k` images of a gallery that are nearest to each query.

    Args:
        metric: as for `embed`.
        queries: `(N, 3, H, W)`, as for the metric; or `(N, D)`, what `embed` made of them.
        gallery: `(M, 3, H, W)` of the same height and width, or `(M, D)`.
        k: how many to find.
        normalize: the images are in [0, 1].
        batch_size: as for `pdist`.
        memory: as for `pdist`.

    Returns:
        Distances `(N, k)`, the smallest first, and the images' numbers in the gallery, `(N, k)`, int64. Among
        equal distances the order is not defined.

    Raises:
        TypeError: as from `embed`.
        ValueError: as from `cdist`; `k` is not in 1 ... M; a distance is not finite, as where a query or an
            image of the gallery holds NaN.
    """
    first, second = _sides(metric, {"queries": queries, "gallery": gallery}, normalize, batch_size, memory)
    if not 1 <= k <= len(second):
        raise ValueError(f"k={k} must be at least 1 and at most the size of the gallery, {len(second)}")
    dtype = torch.promote_types(first.dtype, second.dtype)
    best = torch.full((len(first), k), math.inf, dtype=dtype, device=first.device)
    where = torch.full((len(first), k), -1, device=first.device)
    sound = [torch.zeros(len(side), dtype=torch.bool, device=first.device) for side in (first, second)]
    every = torch.ones((), dtype=torch.bool, device=first.device)
    for rows, columns, distances in _blocks(first, second, memory):
        finite = distances.isfinite()
        sound[0][rows] |= finite.any(dim=1)
        sound[1][columns] |= finite.any(dim=0)
        every &= finite.all()
        found, position = distances.topk(min(k, distances.shape[1]), largest=False)
        found = torch.cat([best[rows], found], dim=1)
        position = torch.cat([where[rows], position + columns.start], dim=1)
        best[rows], order = found.topk(k, largest=False)
        where[rows] = position.gather(1, order)
    if not every:
        for name, fine in zip(("queries", "gallery"), sound, strict=True):
            if not fine.all():
                raise ValueError(
                    f"{name}[{int((~fine).int().argmax())}] is at no finite distance from anything"
                )
        raise ValueError(
            "some distances of queries from the gallery are not finite: embeddings are too large"
        )
    return best, where


def _parts(start: int, stop: int, size: int) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


class _Side:
    """One side of a comparison: images, or embeddings made before, as the embeddings of any part."""

    def __init__(
        self,
        metric: LPIPS,
        given: Images,
        name: str,
        normalize: bool,
        batch_size: int,
        memory: int | None = None,
    ) -> None:
        for argument, number in (("batch_size", batch_size), ("memory", memory)):
            if number is not None and number < 1:
                raise ValueError(f"{argument}={number} must be at least 1")
        self.shape = tuple(getattr(given, "shape", ()))
        self._given = given
        self.embedded = False
        if isinstance(given, Tensor) and given.ndim == 2:
            if not given.is_floating_point():
                raise TypeError(f"{name} must be floating point, as embed made them, got {given.dtype}")
            self.embedded, self.width, self.device = True, given.shape[1], given.device
            self.dtype = torch.promote_types(given.dtype, torch.float32)
            return
        if metric.spatial:
            raise ValueError(
                "a metric with spatial=True measures maps, which no embedding gives; use another"
            )
        self._metric, self._normalize = metric, normalize
        self._weights = _weights(metric)
        if isinstance(given, Tensor):
            check_image(name, given, like=metric.like, min_size=metric.min_size)
        nothing = metric.reference(given[:0], normalize)
        self.width = sum(f.shape[1:].numel() for f in nothing.features)
        self.dtype = torch.promote_types(nothing.dtype, torch.float32)
        self.device = nothing.features[0].device
        fit = batch_size if memory is None else memory // 2 // (_PASS * self.bytes)
        self._batch = max(1, min(batch_size, fit))

    def __len__(self) -> int:
        length: int = self.shape[0]
        return length

    @property
    def bytes(self) -> int:
        """The size of an embedding."""
        return self.width * self.dtype.itemsize

    def __getitem__(self, part: slice) -> Tensor:
        """Return the embeddings of images `part.start` to `part.stop`."""
        if self.embedded:
            return self._given[part]
        out = torch.empty(part.stop - part.start, self.width, dtype=self.dtype, device=self.device)
        for batch in _parts(part.start, part.stop, self._batch):
            self._embed(batch, out[batch.start - part.start : batch.stop - part.start])
        return out

    def _embed(self, batch: slice, out: Tensor) -> None:
        reference = self._metric.reference(self._given[batch], self._normalize)
        start = 0
        for f, length, weight in zip(reference.features, reference.lengths, self._weights, strict=True):
            count, channels, height, width = f.shape
            stop = start + channels * height * width
            rows = out[:, start:stop].view(count, height, width, channels)
            scale = (weight / (height * width)).sqrt().to(out.dtype)
            torch.mul(
                at_least_float32(f).permute(0, 2, 3, 1), 1 / (length + EPS).permute(0, 2, 3, 1), out=rows
            )
            rows *= scale
            start = stop


def _weights(metric: LPIPS) -> list[Tensor]:
    """Return the weights of each layer's channels, in float32 at least."""
    if not metric.lpips:
        return [at_least_float32(metric.like.new_ones(channels)) for channels in metric.chns]
    weights = []
    for name, lin in zip((f"lin{k}" for k in range(metric.L)), metric.lins, strict=True):
        own = unchanged_weights(lin)
        if own is None:
            raise ValueError(
                f"{name} of the metric has been replaced or has hooks, so its weights are not known; "
                "embeddings need heads of this package"
            )
        weight = at_least_float32(own.flatten())
        if (weight < 0).any():
            raise ValueError(
                f"{name} of the metric has negative weights, down to {weight.min():.4g}, and what they weigh "
                "is no squared distance; clamp them at 0"
            )
        weights.append(weight)
    return weights


def _sides(
    metric: LPIPS, given: dict[str, Images], normalize: bool, batch_size: int, memory: int
) -> tuple[_Side, _Side]:
    """Prepare both sides of a comparison and see that they fit each other."""
    first, second = (_Side(metric, each, name, normalize, batch_size, memory) for name, each in given.items())
    names = " and ".join(given)
    if not first.embedded and not second.embedded and first.shape[2:] != second.shape[2:]:
        raise ValueError(
            f"{names} must have the same height and width, got {first.shape[2:]} and {second.shape[2:]}"
        )
    if first.width != second.width:
        raise ValueError(
            f"{names} have embeddings of {first.width} and {second.width} values; to be compared they must "
            "be of images of one size, by one metric and projection"
        )
    if first.device != second.device:
        raise ValueError(f"{names} are on {first.device} and {second.device}; move one with .to(device)")
    return first, second


def _blocks(a: _Side, b: _Side, memory: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield rows, columns and distances of blocks that cover `a` by `b`; of a side by itself, each pair once.

    Embeddings of a part of one side are held while all of the other passes, a few at a time. Half the memory
    is for them; half is for the backbone, and when it is done a quarter each for a block of distances and for
    embeddings in float64.
    """
    # images are held rather than what is embedded already, and the smaller side, that the other be run once
    held, passing = sorted((a, b), key=lambda side: (side.embedded, len(side)))
    room = memory // 2 // max(1 if side.embedded else side.bytes for side in (a, b))
    most = memory // 4 // 48  # distances in a block, with all that is made of them
    step = max(1, min(_STEP, room // 4, math.isqrt(most)))
    count = max(1, min(room - step, most // step) // step) * step
    for rows in _parts(0, len(held), count):
        left = held[rows]
        for columns in _parts(rows.start if a is b else 0, len(passing), step):
            first, stop = columns.start - rows.start, columns.stop - rows.start
            if a is b:  # and what is below the diagonal is not wanted
                right = left[first:stop] if columns.stop <= rows.stop else passing[columns]
                distances = _squared(left[:stop], right, memory // 4)
                yield slice(rows.start, min(rows.stop, columns.stop)), columns, distances
                continue
            distances = _squared(left, passing[columns], memory // 4)
            yield (rows, columns, distances) if held is a else (columns, rows, distances.T)
        del left  # before the next are made


def _squared(a: Tensor, b: Tensor, memory: int) -> Tensor:
    """Return the squared distances `(n, m)` of rows `(n, D)` and `(m, D)`, summed in float64."""
    device = torch.device("cpu") if a.device.type == "mps" else a.device  # which has no float64
    same = a.is_set_to(b)  # half the copies and lengths will do
    product = torch.zeros(len(a), len(b), dtype=torch.float64, device=device)
    long_a = product.new_zeros(len(a), 1)
    long_b = long_a.T if same else product.new_zeros(1, len(b))
    width = min(max(memory // (8 * (len(a) + len(b))), _WIDTH), 8 * _WIDTH)  # no wider than caches like it
    for columns in _parts(0, a.shape[1], width):
        x = a[:, columns].to(device).double()
        long_a += torch.linalg.vector_norm(x, dim=1, keepdim=True).square_()
        y = x if same else b[:, columns].to(device).double()
        if not same:
            long_b += torch.linalg.vector_norm(y, dim=1).square_()
        product.addmm_(x, y.T)
    product.mul_(-2).add_(long_a).add_(long_b)
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    product.masked_fill_(product < _nothing(dtype) * long_a, 0)
    return product.to(a.device, dtype)


def _nothing(dtype: torch.dtype) -> float:
    """Return the share of its squared length that rounding may move an image by, squared.

    An image's activations in the dtype depend in their last digits on what batch it runs in, and float64's
    sums of squares on their order.
    """
    return max((16 * torch.finfo(dtype).eps) ** 2, 64 * torch.finfo(torch.float64).eps)
