"""Distances between files, arrays and tensors in one call, and between many files in batches."""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from rlpips.errors import ImageError
from rlpips.hub import registry
from rlpips.images import opaque, to_tensor
from rlpips.images import resize as resize_images
from rlpips.metric.lpips import LPIPS
from rlpips.pairwise.all_pairs import pdist

Single = str | PathLike[str] | Image.Image
Pixels = npt.NDArray[Any] | Tensor


def cached_metric(net: str, weights: str | PathLike[str], version: str, device: torch.device) -> LPIPS:
    """Build a metric, or return the one built earlier with the same arguments, and from the same file.

    Raises:
        FileNotFoundError: `weights` is the path of a file that does not exist.
        ValueError: as from `LPIPS`.
    """
    file = registry.file_of(weights)
    if file is None:
        return _build(net, str(weights), version, device, None)
    file = file.resolve()
    state = file.stat() if file.exists() else None  # if not, building says so
    # A file that was written again is another one, and its metric is built anew.
    stamp = state and (state.st_ino, state.st_size, state.st_mtime_ns)
    return _build(net, file, version, device, stamp)


@functools.lru_cache(maxsize=4)
def _build(
    net: str, weights: str | Path, version: str, device: torch.device, stamp: tuple[int, ...] | None
) -> LPIPS:
    del stamp
    return LPIPS(net=net, weights=weights, version=version, check_range=False).to(device)


@overload
def distance(
    a: Single,
    b: Single,
    *,
    net: str = "alex",
    weights: str | PathLike[str] = "robust",
    device: str | torch.device | None = None,
    resize: int | tuple[int, int] | None = None,
    tile: int | None = None,
    normalize: bool = False,
    background: str | int | Sequence[int] | None = None,
) -> float: ...
@overload
def distance(
    a: Single | Pixels,
    b: Single | Pixels,
    *,
    net: str = "alex",
    weights: str | PathLike[str] = "robust",
    device: str | torch.device | None = None,
    resize: int | tuple[int, int] | None = None,
    tile: int | None = None,
    normalize: bool = False,
    background: str | int | Sequence[int] | None = None,
) -> float | npt.NDArray[np.float32]: ...
def distance(
    a: Single | Pixels,
    b: Single | Pixels,
    *,
    net: str = "alex",
    weights: str | PathLike[str] = "robust",
    device: str | torch.device | None = None,
    resize: int | tuple[int, int] | None = None,
    tile: int | None = None,
    normalize: bool = False,
    background: str | int | Sequence[int] | None = None,
) -> float | npt.NDArray[np.float32]:
    """Measure the perceptual distance between two images, or two batches of them, given as almost anything.

    Smaller is more alike. By the default metric a photo is at about 0.02 from itself as a JPEG of quality 70,
    at 0.03 for quality 40, 0.06 for 20 and 0.1 for 10, and at 0.7 from another photo: medians of 100 photos
    of 224 x 224 pixels (`python -m benchmarks.scale`).

    Float tensors whose values all lie in [0, 1] are warned of, as they are read as [-1, 1] without
    `normalize=True`.

    Args:
        a: a path; a Pillow image; a NumPy array `(H, W)`, `(H, W, C)` or `(N, H, W, C)`, uint8 in [0, 255] or
            float in [0, 1]; or a tensor `(H, W)`, `(C, H, W)` or `(N, C, H, W)`, uint8 in [0, 255] or float
            in [-1, 1]. C is 3 for RGB, or 1 for grey, which is taken for RGB of three equal channels.
        b: likewise; a single image is compared with each of a batch.
        net: 'alex', 'vgg' or 'squeeze'.
        weights: as in `LPIPS`; the robust AlexNet metric needs no download. A file that has changed since the
            last call is read again.
        device: where to compute; by default where a tensor lies that was given, else on the CPU.
        resize: bring both to this (height, width), or to a square of this side, before measuring.
        tile: for huge images, run tiles of this side one at a time, as in `LPIPS.forward`.
        normalize: float tensors are in [0, 1]; float arrays always are.
        background: what lies behind the transparent pixels of files and Pillow images, which are refused
            without: a colour as Pillow names it ('white', '#ff8000'), a grey level, or (red, green, blue), in
            [0, 255].

    Returns:
        A float, or a float32 array `(N,)` if either argument is a batch.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: something is not an image that can be measured, is too small, or the sizes differ.
        OSError: a file cannot be read now, such as for lack of permission.
        TypeError: an argument is none of the above.
        ValueError: as from `LPIPS`; `background` is no colour.
        WeightsUnavailableError: weights are not on this machine and could not be fetched.
    """
    images_a, images_b, batched = of_one_size(a, b, resize, normalize=normalize, background=background)
    if not normalize:
        given = {"a": (a, images_a), "b": (b, images_b)}
        floats = {n: x for n, (y, x) in given.items() if isinstance(y, Tensor) and y.is_floating_point()}
        # One negative value tells the range of both.
        if floats and all(x.numel() and x.min() >= 0 for x in floats.values()):
            many = len(floats) > 1
            warnings.warn(
                f"{' and '.join(floats)} {'are float tensors' if many else 'is a float tensor'} and all "
                f"{'their' if many else 'its'} values lie in [0, 1]; tensors are read as [-1, 1]. If "
                f"{'they are' if many else 'it is'} in [0, 1], pass normalize=True",
                stacklevel=2,
            )
    if device is None:
        device = images_a.device if images_a.device.type != "cpu" else images_b.device
    metric = cached_metric(net, weights, "0.1", torch.device(device))
    if problem := _too_small(images_a.shape, metric):
        files = [str(each) for each in (a, b) if isinstance(each, str | PathLike)]
        raise ImageError(f"{' and '.join(files) or 'a and b'}: {problem}")
    with torch.inference_mode():
        distances = metric(images_a.to(device), images_b.to(device), tile=tile).flatten().cpu().numpy()
    return distances if batched else float(distances[0])


def of_one_size(
    a: Any,
    b: Any,
    resize: int | tuple[int, int] | None = None,
    *,
    normalize: bool = False,
    background: str | int | Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, bool]:
    """Read two images, or two batches of them, that are to be compared.

    Args:
        a: as for `distance`.
        b: likewise.
        resize: likewise.
        normalize: likewise.
        background: likewise.

    Returns:
        Two tensors `(N, 3, H, W)` in [-1, 1], and whether either was a batch.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: something is not an image that can be measured, or the sizes differ.
        TypeError: an argument is nothing that holds images.
        ValueError: `background` is no colour.
    """
    colour = None if background is None else opaque(background)
    images_a, batched_a = to_tensor(a, "a", normalize=normalize, background=colour)
    images_b, batched_b = to_tensor(b, "b", normalize=normalize, background=colour)
    if resize is not None:
        size = (resize, resize) if isinstance(resize, int) else (resize[0], resize[1])
        images_a, images_b = resize_images(images_a, size), resize_images(images_b, size)
    if images_a.shape[2:] != images_b.shape[2:]:
        raise ImageError(
            _sizes_differ(images_a.shape, images_b.shape) + "; resize=(height, width) brings both to one size"
        )
    return images_a, images_b, batched_a or batched_b


@dataclass(frozen=True)
class Measured:
    """The distance of one pair of files, or why there is none: files that are unreadable, or a problem."""

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
    """Measure pairs of files in batches of equal size, in the order given; what cannot be read is reported.

    Args:
        pairs: the files.
        metric: the metric, on the device where it shall run.
        batch_size: the most pairs that run at once.
        resize: (height, width) to which all images are brought.
        tile: for huge images, as in `LPIPS.forward`; pairs then run one at a time, and few images are kept.

    Yields:
        One `Measured` for each pair, in order.
    """
    if tile is not None:
        batch_size = 1
    load = _loader(resize, remember=256 if tile is None else 2)
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
    """Measure all pairs of files as `measure_pairs` does, but run each image through the backbone once.

    Args:
        files: the files.
        metric: the metric, on the device where it shall run.
        batch_size: the most images that run at once.
        resize: (height, width) to which all images are brought.
        progress: is called with the number of pairs that have been measured.

    Yields:
        One `Measured` for each pair, in the order of `itertools.combinations`.

    Raises:
        ImageError: a file that could be read at first could not be read again.
    """
    load = _loader(resize)
    sizes = {path: _size(load(path)) for path in files}
    alike: dict[torch.Size, list[Path]] = {}
    for path in files:
        size = sizes[path]
        if _check_pair(path, path, size, size, metric) is None:
            assert not isinstance(size, str)
            alike.setdefault(size, []).append(path)
    device = metric.like.device
    distances = {
        size: iter(
            pdist(
                metric, _Files(group, size, load, device), batch_size=batch_size, progress=progress
            ).tolist()
        )
        for size, group in alike.items()
    }
    for a, b in itertools.combinations(files, 2):
        size = sizes[a]
        measured = _check_pair(a, b, size, sizes[b], metric)
        yield measured or Measured(a, b, next(distances[size]))  # type: ignore[index]  # has been checked


class _Files:
    """Images of one size as a batch `(N, 3, H, W)`, of which slices are read when they are asked for."""

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


def _loader(resize: tuple[int, int] | None, remember: int = 256) -> Callable[[Path], Tensor | str]:
    """Return what reads a file as `(1, 3, H, W)`, or says why it cannot, and remembers the last ones."""

    @functools.lru_cache(maxsize=remember)
    def load(path: Path) -> Tensor | str:
        try:
            image, _ = to_tensor(path)
        except (OSError, ImageError, MemoryError) as error:
            return str(error)
        return image if resize is None else resize_images(image, resize)

    return load


def _size(image: Tensor | str) -> torch.Size | str:
    """Return (3, H, W), or why there is no image."""
    return image if isinstance(image, str) else image.shape[1:]


def _check_pair(
    a: Path, b: Path, size_a: torch.Size | str, size_b: torch.Size | str, metric: LPIPS
) -> Measured | None:
    """Return why a pair cannot be measured, or None if it can."""
    unreadable = {path: size for path, size in ((a, size_a), (b, size_b)) if isinstance(size, str)}
    if unreadable:
        return Measured(a, b, unreadable=unreadable)
    assert not isinstance(size_a, str)
    assert not isinstance(size_b, str)
    if size_a != size_b:
        return Measured(a, b, problem=_sizes_differ(size_a, size_b) + "; --resize brings all to one size")
    if problem := _too_small(size_a, metric):
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


def _sizes_differ(size_a: Sequence[int], size_b: Sequence[int]) -> str:
    """Say so of sizes (..., H, W)."""
    return f"the images differ in size: {_pixels(size_a)} and {_pixels(size_b)} pixels (height x width)"


def _too_small(size: Sequence[int], metric: LPIPS) -> str:
    """Say of a size (..., H, W) that the metric cannot take it; say nothing if it can."""
    if min(size[-2:]) >= metric.min_size:
        return ""
    least = f"{metric.min_size} x {metric.min_size}"
    return f"{_pixels(size)} pixels are too few, this backbone needs {least} (height x width)"


def _pixels(size: Sequence[int]) -> str:
    """Write a size (..., H, W), in the order that `--resize` takes."""
    return f"{size[-2]} x {size[-1]}"
