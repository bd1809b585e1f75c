"""The distance of two images, or of two batches, given as files, arrays or tensors."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from rlpips.errors import ImageError
from rlpips.images import opaque, to_tensor
from rlpips.images import resize as resize_images
from rlpips.scoring.image_sizes import sizes_differ, too_small
from rlpips.scoring.metric_cache import cached_metric

Single = str | PathLike[str] | Image.Image
Pixels = npt.NDArray[Any] | Tensor


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
    at 0.03 for quality 40, 0.06 for 20 and 0.1 for 10, and at 0.7 from another photo. These are medians of
    100 photos of 224 x 224 pixels (`python -m benchmarks.scale`).

    Float tensors are read as [-1, 1]. If all their values lie in [0, 1], there is a warning, unless
    `normalize=True`.

    Args:
        a: a path; a Pillow image; a NumPy array `(H, W)`, `(H, W, C)` or `(N, H, W, C)`, uint8 in [0, 255] or
            float in [0, 1]; or a tensor `(H, W)`, `(C, H, W)` or `(N, C, H, W)`, uint8 in [0, 255] or float
            in [-1, 1]. C is 3 for RGB, or 1 for grey, which is read as RGB of three equal channels.
        b: the other image or batch. If one of the two is a single image, it is compared with each image of
            the other.
        net: the backbone: 'alex', 'vgg' or 'squeeze'.
        weights: 'robust', which needs no download; 'standard' for LPIPS; another name of `list_weights()`; or
            the path of a checkpoint. A file that has changed since the last call is read again.
        device: where to compute. By default it is the device of the given tensors, or else the CPU.
        resize: resize both images to this (height, width), or to a square of this side, before measuring.
        tile: for huge images: measure tiles of this side one at a time, which needs less memory.
        normalize: float tensors are in [0, 1] instead of [-1, 1]. Float arrays are always in [0, 1].
        background: the colour behind the transparent pixels of files and Pillow images: a name or code of
            Pillow ('white', '#ff8000'), a grey level, or (red, green, blue), in [0, 255]. Without a
            background, images with transparent pixels are refused.

    Returns:
        A float, or a float32 array `(N,)` if either argument is a batch.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: an image cannot be read or measured or is too small, or the sizes differ.
        OSError: a file cannot be read now, for example because of its permissions.
        TypeError: `a` or `b` is none of the above.
        ValueError: there are no weights for `net` by this name, or the file is not a checkpoint for `net`;
            `background` is not a colour; `tile` is not positive.
        WeightsUnavailableError: weights are not on this machine and could not be fetched.
    """
    images_a, images_b, batched = load_pair(a, b, resize, normalize=normalize, background=background)
    warn_of_unit_range(normalize, a=[a], b=[b])
    if device is None:
        device = images_a.device if images_a.device.type != "cpu" else images_b.device
    metric = cached_metric(net, weights, "0.1", torch.device(device))
    if problem := too_small(images_a.shape, metric):
        files = [str(each) for each in (a, b) if isinstance(each, str | PathLike)]
        raise ImageError(f"{' and '.join(files) or 'a and b'}: {problem}")
    with torch.inference_mode():
        distances = metric(images_a.to(device), images_b.to(device), tile=tile).flatten().cpu().numpy()
    return distances if batched else float(distances[0])


def load_pair(
    a: Any,
    b: Any,
    resize: int | tuple[int, int] | None = None,
    *,
    normalize: bool = False,
    background: str | int | Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, bool]:
    """Read two images, or two batches, as tensors of the same height and width.

    Args:
        a: a path; a Pillow image; a NumPy array `(H, W)`, `(H, W, C)` or `(N, H, W, C)`, uint8 in [0, 255] or
            float in [0, 1]; or a tensor `(H, W)`, `(C, H, W)` or `(N, C, H, W)`, uint8 in [0, 255] or float
            in [-1, 1]. C is 3 or 1.
        b: the other image or batch.
        resize: resize both to this (height, width), or to a square of this side.
        normalize: float tensors are in [0, 1] instead of [-1, 1]. Float arrays are always in [0, 1].
        background: the colour behind the transparent pixels of files and Pillow images, which are refused
            without a background.

    Returns:
        Two tensors `(N, 3, H, W)` in [-1, 1], and whether any of the two was a batch.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: an image cannot be read or measured, or the sizes differ.
        OSError: a file cannot be read now, for example because of its permissions.
        TypeError: `a` or `b` is none of the above.
        ValueError: `background` is not a colour.
    """
    colour = None if background is None else opaque(background)
    images_a, batched_a = to_tensor(a, "a", normalize=normalize, background=colour)
    images_b, batched_b = to_tensor(b, "b", normalize=normalize, background=colour)
    if resize is not None:
        size = (resize, resize) if isinstance(resize, int) else (resize[0], resize[1])
        images_a, images_b = resize_images(images_a, size), resize_images(images_b, size)
    if images_a.shape[2:] != images_b.shape[2:]:
        raise ImageError(
            sizes_differ(images_a.shape, images_b.shape) + "; resize=(height, width) brings both to one size"
        )
    return images_a, images_b, batched_a or batched_b


def warn_of_unit_range(normalize: bool, **given: Iterable[Any]) -> None:
    """Warn the caller's caller if float tensors seem to be in [0, 1] but are read as [-1, 1].

    One negative value anywhere shows that the tensors are in [-1, 1].

    Args:
        normalize: whether float tensors are read as [0, 1]. Then there is nothing to warn of.
        given: the images, by the name of the argument. Only float tensors are looked at.
    """
    if normalize:
        return
    floats: Mapping[str, list[Tensor]] = {
        name: [image for image in images if isinstance(image, Tensor) and image.is_floating_point()]
        for name, images in given.items()
    }
    names = [name for name, tensors in floats.items() if tensors]
    every = [tensor for tensors in floats.values() for tensor in tensors]
    if every and all(tensor.numel() and tensor.min() >= 0 for tensor in every):
        many = len(names) > 1
        warnings.warn(
            f"{' and '.join(names)} {'are float tensors' if many else 'is a float tensor'} and all "
            f"{'their' if many else 'its'} values lie in [0, 1]; tensors are read as [-1, 1]. If "
            f"{'they are' if many else 'it is'} in [0, 1], pass normalize=True",
            stacklevel=3,
        )
