"""Pairs of images as figures show them: the pixels, the distance and the map of local distances."""

import copy
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlpips.errors import ImageError
from rlpips.images import resize as resize_images
from rlpips.metric.lpips import LPIPS
from rlpips.scoring.metric_cache import cached_metric
from rlpips.scoring.one_pair import load_pair


@dataclass(frozen=True)
class MeasuredPair:
    """Two images, `(H, W, 3)`, uint8; their distance; and the local distances, `(H, W)`, float32."""

    a: npt.NDArray[np.uint8]
    b: npt.NDArray[np.uint8]
    distance: float
    map: npt.NDArray[np.float32]


def default_metric() -> LPIPS:
    """Return the robust metric that ships with the package."""
    return cached_metric("alex", "robust", "0.1", torch.device("cpu"))


def evaluation_copy(metric: LPIPS) -> LPIPS:
    """Return a copy of a metric in eval mode, which returns distances, not maps."""
    metric = copy.deepcopy(metric).eval()
    metric.spatial, metric.check_range = False, False  # reading the images checks them
    return metric


def read_pair(
    metric: LPIPS,
    a: Any,
    b: Any,
    resize: int | tuple[int, int] | None = None,
    normalize: bool = False,
) -> tuple[Tensor, Tensor]:
    """Read two images as tensors `(1, 3, H, W)` in [-1, 1], of the metric's device and dtype.

    Raises:
        ImageError: an image cannot be read or measured or is a batch of several, or the sizes differ.
    """
    image_a, image_b, _ = load_pair(a, b, resize, normalize=normalize)
    for name, image in (("a", image_a), ("b", image_b)):
        if len(image) != 1:
            raise ImageError(f"{name} holds {len(image)} images; pass one of them, such as {name}[0]")
    like = metric.like
    return image_a.to(like.device, like.dtype), image_b.to(like.device, like.dtype)


def measure_map(
    metric: LPIPS,
    a: Any,
    b: Any,
    *,
    resize: int | tuple[int, int] | None = None,
    tile: int | None = None,
    normalize: bool = False,
    side: int | None = None,
) -> MeasuredPair:
    """Measure the distance of two images, and where they differ.

    Args:
        metric: a copy made by `evaluation_copy`. Its `spatial` is changed.
        a: a path, a Pillow image, an array or a tensor.
        b: the other image.
        resize: resize both to this (height, width), or to a square of this side, before measuring.
        tile: measure tiles of this side one at a time.
        normalize: float tensors are in [0, 1] instead of [-1, 1].
        side: shrink the images and the map in the result to at most this many pixels per side.
    """
    images = read_pair(metric, a, b, resize, normalize)
    with torch.inference_mode():
        # The backbone runs once for both the distance and the map, unless only tiles fit into memory.
        in0, in1 = images if tile is not None else map(metric.reference, images)
        metric.spatial = False
        distance = metric(in0, in1, tile=tile).item()
        metric.spatial = True
        shown = [*images, metric(in0, in1, tile=tile)]
        height, width = images[0].shape[2:]
        if side is not None and max(height, width) > side:
            scale = side / max(height, width)
            size = (max(1, round(scale * height)), max(1, round(scale * width)))
            shown = [resize_images(each.float(), size) for each in shown]
        pixels = [((x[0].float() + 1) * 127.5).round().clamp(0, 255).byte() for x in shown[:2]]
        bytes_a, bytes_b = (x.permute(1, 2, 0).cpu().numpy() for x in pixels)
        return MeasuredPair(bytes_a, bytes_b, distance, shown[2][0, 0].float().cpu().numpy())


def image_name(image: Any, default: str) -> str:
    """Return the name of a file, or the default for an image that is not a file."""
    return Path(image).name if isinstance(image, str | PathLike) else default
