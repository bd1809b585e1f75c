"""Embeddings: vectors of images whose squared Euclidean distances are the metric.

LPIPS is a sum of squares. It scales activations to unit length over channels, takes the differences of two
images, squares them, weights them by the heads, averages over space and sums over layers. So take the scaled
activations of an image, and multiply each by the root of its weight. This vector is an embedding whose
squared Euclidean distances are the metric. It works with any library that searches vectors, such as FAISS:
see `examples/near_duplicates.py`.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from rlpips.metric.formula import EPS, at_least_float32
from rlpips.metric.heads import unchanged_weights
from rlpips.metric.inputs import check_image
from rlpips.metric.lpips import LPIPS
from rlpips.pairwise.projection import Projection

# An image takes this many times the memory of its embedding in the backbone and on the way to the embedding.
_MEMORY_PER_IMAGE = 5


class Images(Protocol):
    """A batch of images `(N, 3, H, W)`: a tensor, or an object that reads slices when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole batch."""

    def __getitem__(self, part: slice, /) -> Tensor:
        """Return some of the images, `(n, 3, H, W)`. An empty slice returns `(0, 3, H, W)`."""


@torch.no_grad()
def embed(
    metric: LPIPS,
    images: Images,
    *,
    normalize: bool = False,
    batch_size: int = 64,
    projection: Projection | None = None,
) -> Tensor:
    """Return a vector for each image, whose squared Euclidean distances are the metric.

    Args:
        metric: the metric. It needs head weights of at least 0 and `spatial=False`.
        images: `(N, 3, H, W)`, as the metric takes them.
        normalize: the images are in [0, 1] instead of [-1, 1].
        batch_size: how many images pass through the backbone at once.
        projection: map the embeddings to fewer values.

    Returns:
        `(N, D)`, float32, or float64 if the metric or the images are float64. D grows with the size of the
        images: it is 31872 for AlexNet and 64 x 64 pixels. With a projection, `(N, dim)`.

    Raises:
        TypeError: `images` are not images, or their dtype cannot be used.
        ValueError: the shape is wrong, the images are too small for the backbone or on another device; a head
            of the metric has negative weights, so that the metric is not a squared distance; the metric has
            `spatial=True`, so that it measures maps.
    """
    given = Embeddings(metric, images, "images", normalize, batch_size)
    if given.ready:
        raise ValueError(f"images must have shape (N, 3, H, W), got {tuple(images.shape)}")
    if projection is None:
        return given[0 : len(given)]
    out = torch.empty(len(given), projection.dim, dtype=given.dtype, device=given.device)
    for part in slices(0, len(given), batch_size):
        out[part] = projection(given[part])
    return out


class Embeddings:
    """The embeddings of a batch, computed when a slice of them is asked for.

    Args:
        metric: the metric.
        given: images, `(N, 3, H, W)`, or embeddings from an earlier call, `(N, D)`.
        name: what error messages call the batch.
        normalize: the images are in [0, 1] instead of [-1, 1].
        batch_size: the most images that pass through the backbone at once.
        memory: bytes. Half of them are for the images in the backbone, which may make batches smaller.

    Attributes:
        ready: whether embeddings were given, so that nothing has to be computed.
        shape: the shape of what was given.
        width: number of values of an embedding.
        dtype: dtype of the embeddings.
        device: device of the embeddings.
    """

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
        self.ready = False
        if isinstance(given, Tensor) and given.ndim == 2:
            if not given.is_floating_point():
                raise TypeError(f"{name} must be floating point, as embed made them, got {given.dtype}")
            self.ready, self.width, self.device = True, given.shape[1], given.device
            self.dtype = torch.promote_types(given.dtype, torch.float32)
            return
        if metric.spatial:
            raise ValueError(
                "a metric with spatial=True measures maps and has no embeddings; use one with spatial=False"
            )
        self._metric, self._normalize = metric, normalize
        self._weights = _head_weights(metric)
        if isinstance(given, Tensor):
            check_image(name, given, like=metric.like, min_size=metric.min_size)
        empty = metric.reference(given[:0], normalize)
        self.width = sum(f.shape[1:].numel() for f in empty.features)
        self.dtype = torch.promote_types(empty.dtype, torch.float32)
        self.device = empty.features[0].device
        fit = batch_size if memory is None else memory // 2 // (_MEMORY_PER_IMAGE * self.bytes)
        self._batch_size = max(1, min(batch_size, fit))

    def __len__(self) -> int:
        length: int = self.shape[0]
        return length

    @property
    def bytes(self) -> int:
        """The size of one embedding."""
        return self.width * self.dtype.itemsize

    def __getitem__(self, part: slice) -> Tensor:
        """Return the embeddings `part.start` to `part.stop`."""
        if self.ready:
            return self._given[part]
        out = torch.empty(part.stop - part.start, self.width, dtype=self.dtype, device=self.device)
        for batch in slices(part.start, part.stop, self._batch_size):
            self._embed(batch, out[batch.start - part.start : batch.stop - part.start])
        return out

    def _embed(self, batch: slice, out: Tensor) -> None:
        """Write the embeddings of a batch: `sqrt(w / (H * W)) * f / (|f| + eps)`, one layer after another."""
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


def both_embeddings(
    metric: LPIPS, given: dict[str, Images], normalize: bool, batch_size: int, memory: int
) -> tuple[Embeddings, Embeddings]:
    """Return the embeddings of two batches, given by name, and check that they can be compared."""
    first, second = (
        Embeddings(metric, each, name, normalize, batch_size, memory) for name, each in given.items()
    )
    names = " and ".join(given)
    if not first.ready and not second.ready and first.shape[2:] != second.shape[2:]:
        raise ValueError(
            f"{names} must have the same height and width, got {first.shape[2:]} and {second.shape[2:]}"
        )
    if first.width != second.width:
        raise ValueError(
            f"{names} have embeddings of {first.width} and {second.width} values; to be compared they must "
            "come from images of one size, by the same metric and projection"
        )
    if first.device != second.device:
        raise ValueError(f"{names} are on {first.device} and {second.device}; move one with .to(device)")
    return first, second


def slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Cut `start` to `stop` into slices of `step`. The last may be shorter."""
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def _head_weights(metric: LPIPS) -> list[Tensor]:
    """Return the weights of each layer's channels, in float32 or float64."""
    if not metric.lpips:
        return [at_least_float32(metric.like.new_ones(channels)) for channels in metric.chns]
    weights = []
    for name, lin in zip((f"lin{k}" for k in range(metric.L)), metric.lins, strict=True):
        own = unchanged_weights(lin)
        if own is None:
            raise ValueError(
                f"{name} of the metric has been replaced or has hooks, so its weights are not known; "
                "embeddings need the heads of this package"
            )
        weight = at_least_float32(own.flatten())
        if (weight < 0).any():
            raise ValueError(
                f"{name} of the metric has negative weights, down to {weight.min():.4g}, so the metric is "
                "not a squared distance; clamp them at 0"
            )
        weights.append(weight)
    return weights
