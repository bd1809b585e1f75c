"""Distances of many pairs of files, measured in batches."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rlpips.errors import ImageError
from rlpips.images import resize as resize_images
from rlpips.images import to_tensor
from rlpips.metric.lpips import LPIPS
from rlpips.pairwise.all_pairs import pdist
from rlpips.scoring.image_sizes import sizes_differ, too_small


@dataclass(frozen=True)
class Measured:
    """The distance of one pair of files, or why it could not be measured.

    Attributes:
        a: the first file.
        b: the second file.
        distance: the distance, NaN if it could not be measured.
        unreadable: the files of the pair that cannot be read, with the reason.
        problem: what is wrong with two images that can be read, such as different sizes, or ''.
    """

    a: Path
    b: Path
    distance: float = float("nan")
    unreadable: Mapping[Path, str] = field(default_factory=dict)
    problem: str = ""


def measure_pairs(
    pairs: Iterable[tuple[Path, Path]],
    metric: LPIPS,
    *,
    batch_size: int = 16,
    resize: tuple[int, int] | None = None,
    tile: int | None = None,
) -> Iterator[Measured]:
    """Measure pairs of files, many at once where their sizes are equal.

    A file that cannot be read, or a pair that cannot be measured, is reported in the result and does not stop
    the others. A file that occurs in several pairs close together is read once. For all pairs of some files,
    `measure_all` is faster.

    Args:
        pairs: the files.
        metric: the metric, on the device where it computes.
        batch_size: the most pairs that are measured at once.
        resize: resize all images to this (height, width).
        tile: for huge images: measure tiles of this side one at a time, and pairs one at a time.

    Yields:
        One `Measured` for each pair, in the order of `pairs`.
    """
    if tile is not None:
        batch_size = 1
    load = _loader(resize, remember=2 * batch_size)  # no more than a batch holds
    waiting: list[tuple[Path, Path, Tensor, Tensor]] = []
    for a, b in pairs:
        image_a, image_b = load(a), load(b)
        measured = _check_pair(a, b, _size(image_a), _size(image_b), metric)
        full = len(waiting) == batch_size
        if waiting and (full or measured is not None or waiting[0][2].shape != image_a.shape):  # type: ignore[union-attr]
            yield from _measure_batch(waiting, metric, tile)
            waiting = []
        if measured is not None:
            yield measured
        else:
            assert isinstance(image_a, Tensor)
            assert isinstance(image_b, Tensor)
            waiting.append((a, b, image_a, image_b))
    if waiting:
        yield from _measure_batch(waiting, metric, tile)


def measure_all(
    files: Sequence[Path],
    metric: LPIPS,
    *,
    batch_size: int = 64,
    resize: tuple[int, int] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Iterator[Measured]:
    """Measure all pairs of some files. Each image passes through the backbone once.

    A file that cannot be read, or a pair that cannot be measured, is reported in the result and does not stop
    the others.

    Args:
        files: the files.
        metric: the metric, on the device where it computes.
        batch_size: the most images that pass through the backbone at once.
        resize: resize all images to this (height, width).
        progress: is called with the number of pairs that have been measured.

    Yields:
        One `Measured` for each pair, in the order of `itertools.combinations`.

    Raises:
        ImageError: a file that could be read at first could not be read again.
    """
    load = _loader(resize, remember=256)  # each file is read for its size, and again for its embedding
    sizes = {path: _size(load(path)) for path in files}
    same_size: dict[torch.Size, list[Path]] = {}
    for path in files:
        size = sizes[path]
        if _check_pair(path, path, size, size, metric) is None:
            assert not isinstance(size, str)
            same_size.setdefault(size, []).append(path)
    device = metric.like.device
    distances = {
        size: iter(
            pdist(
                metric, _LazyImages(group, size, load, device), batch_size=batch_size, progress=progress
            ).tolist()
        )
        for size, group in same_size.items()
    }
    for a, b in itertools.combinations(files, 2):
        size = sizes[a]
        measured = _check_pair(a, b, size, sizes[b], metric)
        yield measured or Measured(a, b, next(distances[size]))  # type: ignore[index]  # has been checked


class _LazyImages:
    """Files of one size as a batch `(N, 3, H, W)`. A slice is read when it is asked for."""

    def __init__(
        self,
        paths: Sequence[Path],
        size: torch.Size,
        load: Callable[[Path], Tensor | str],
        device: torch.device,
    ) -> None:
        self.shape = (len(paths), *size)
        self._paths, self._load, self._device = paths, load, device

    def __getitem__(self, part: slice) -> Tensor:
        images = [torch.empty(0, *self.shape[1:])]
        for path in self._paths[part]:
            image = self._load(path)
            if isinstance(image, str):
                raise ImageError(image)
            images.append(image)
        return torch.cat(images).to(self._device)


def _loader(resize: tuple[int, int] | None, remember: int) -> Callable[[Path], Tensor | str]:
    """Return a function that reads a file as `(1, 3, H, W)`, or returns why it cannot.

    It remembers the results that were used last.
    """

    @functools.lru_cache(maxsize=remember)
    def load(path: Path) -> Tensor | str:
        try:
            image, _ = to_tensor(path)
        except (OSError, ImageError, MemoryError) as error:
            return str(error)
        return image if resize is None else resize_images(image, resize)

    return load


def _size(image: Tensor | str) -> torch.Size | str:
    """Return the size (3, H, W) of an image, or why there is no image."""
    return image if isinstance(image, str) else image.shape[1:]


def _check_pair(
    a: Path, b: Path, size_a: torch.Size | str, size_b: torch.Size | str, metric: LPIPS
) -> Measured | None:
    """Return the result for a pair that cannot be measured, or None if it can."""
    unreadable = {path: size for path, size in ((a, size_a), (b, size_b)) if isinstance(size, str)}
    if unreadable:
        return Measured(a, b, unreadable=unreadable)
    assert not isinstance(size_a, str)
    assert not isinstance(size_b, str)
    if size_a != size_b:
        return Measured(a, b, problem=sizes_differ(size_a, size_b) + "; --resize brings all to one size")
    if problem := too_small(size_a, metric):
        return Measured(a, b, problem=problem)
    return None


def _measure_batch(
    batch: list[tuple[Path, Path, Tensor, Tensor]], metric: LPIPS, tile: int | None
) -> Iterator[Measured]:
    device = metric.like.device
    in0, in1 = (
        (torch.cat(images) if len(images) > 1 else images[0]).to(device)  # no copy of what may be huge
        for images in ([image_a for _, _, image_a, _ in batch], [image_b for _, _, _, image_b in batch])
    )
    with torch.inference_mode():
        distances = metric(in0, in1, tile=tile).flatten().tolist()
    for (a, b, _, _), value in zip(batch, distances, strict=True):
        yield Measured(a, b, value)
