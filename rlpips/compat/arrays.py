"""Conversions between arrays and tensors, and classical image errors, as in `lpips`.

An image is an array `(H, W, 3)` or a tensor `(1, 3, H, W)`.
"""

import importlib
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlpips.errors import MissingExtraError

Array = npt.NDArray[Any]
Scalar = np.floating[Any]


def _skimage(module: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(f"skimage.{module}")
    except ImportError as error:
        raise MissingExtraError(what, "classical") from error


def l2(p0: Array, p1: Array, range: float = 255.0) -> Scalar:
    """Half the mean squared difference of two arrays of the same shape, in units of `range`.

    Returns:
        A NumPy scalar: float32 for float32 arrays, float64 for bytes.
    """
    error: Scalar = 0.5 * np.mean(np.square(p0 / range - p1 / range))
    return error


def psnr(p0: Array, p1: Array, peak: float = 255.0) -> Scalar:
    """Peak signal-to-noise ratio of two arrays of the same shape, in dB; infinite if they are equal.

    Returns:
        A NumPy scalar: float32 for float32 arrays, float64 for bytes.
    """
    error = np.mean(np.square(1.0 * p0 - 1.0 * p1))
    with np.errstate(divide="ignore"):
        ratio: Scalar = 10 * np.log10(peak**2 / error)
    return ratio


def dssim(p0: Array, p1: Array, range: float = 255.0) -> Scalar:
    """Structural dissimilarity of two images `(H, W, C)` of at least 7 x 7 pixels: `(1 - SSIM) / 2`.

    Raises:
        MissingExtraError: scikit-image is not installed (extra 'classical').
    """
    metrics = _skimage("metrics", "dssim")
    distance: Scalar = (1 - metrics.structural_similarity(p0, p1, data_range=range, channel_axis=-1)) / 2
    return distance


def rgb2lab(input: Array) -> Array:
    """Convert an RGB image `(H, W, 3)` in [0, 255] to CIE Lab.

    Raises:
        MissingExtraError: scikit-image is not installed (extra 'classical').
    """
    lab: Array = _skimage("color", "rgb2lab").rgb2lab(input / 255.0)
    return lab


def tensor2np(tensor_obj: Tensor) -> Array:
    """Convert the first image of a batch `(N, C, H, W)` to a float32 array `(H, W, C)`, without scaling."""
    return tensor_obj[0].detach().cpu().float().permute(1, 2, 0).numpy()


def np2tensor(np_obj: Array) -> Tensor:
    """Convert an array `(H, W, C)` to a float32 tensor `(1, C, H, W)`, without scaling."""
    return torch.tensor(np.ascontiguousarray(np_obj), dtype=torch.float32).permute(2, 0, 1)[None]


def tensor2im(
    image_tensor: Tensor, imtype: npt.DTypeLike = np.uint8, cent: float = 1.0, factor: float = 255.0 / 2.0
) -> Array:
    """Convert the first image of a batch to an array `(H, W, C)`, from [-1, 1] to [0, 255].

    A value x becomes `(x + cent) * factor`.
    """
    return ((tensor2np(image_tensor) + cent) * factor).astype(imtype)


def im2tensor(
    image: Array,
    imtype: npt.DTypeLike = np.uint8,  # noqa: ARG001  lpips takes it, and does not use it either
    cent: float = 1.0,
    factor: float = 255.0 / 2.0,
) -> Tensor:
    """Turn an image `(H, W, C)` into `(1, C, H, W)`, from [0, 255] to [-1, 1]: `x / factor - cent`, float32.

    >>> im2tensor(np.full((1, 1, 3), 255, dtype=np.uint8)).flatten()
    tensor([1., 1., 1.])
    """
    return np2tensor(image / factor - cent)


def tensor2vec(vector_tensor: Tensor) -> Array:
    """Convert a tensor `(N, C, 1, 1)` to an array `(N, C)`."""
    return vector_tensor.detach().cpu().numpy()[:, :, 0, 0]


def tensor2tensorlab(image_tensor: Tensor, to_norm: bool = True, mc_only: bool = False) -> Tensor:
    """Convert the first image of a batch from RGB in [-1, 1] to CIE Lab, `(1, 3, H, W)`.

    Args:
        image_tensor: `(N, 3, H, W)`.
        to_norm: centre L at 0 and divide everything by 100.
        mc_only: centre L and do not divide.

    Raises:
        MissingExtraError: scikit-image is not installed (extra 'classical').
    """
    lab = _skimage("color", "tensor2tensorlab").rgb2lab(tensor2im(image_tensor))
    if to_norm or mc_only:
        lab[..., 0] -= 50
    if to_norm and not mc_only:
        lab = lab / 100
    return np2tensor(lab)


def tensorlab2tensor(lab_tensor: Tensor, return_inbnd: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Convert a Lab image from `tensor2tensorlab` back to RGB in [-1, 1], `(1, 3, H, W)`.

    Args:
        lab_tensor: a batch `(N, 3, H, W)`, of which the first image is converted.
        return_inbnd: also return a mask `(1, 1, H, W)`: 1 where RGB has the colour, within 2 units of Lab.

    Raises:
        MissingExtraError: scikit-image is not installed (extra 'classical').
    """
    color = _skimage("color", "tensorlab2tensor")
    lab = tensor2np(lab_tensor).astype(np.float64) * 100
    lab[..., 0] += 50
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of colours that RGB does not have; the mask marks them
        rgb = 255 * np.clip(color.lab2rgb(lab), 0, 1)
    if not return_inbnd:
        return im2tensor(rgb)
    again = color.rgb2lab(rgb.astype(np.uint8))
    mask = np.isclose(again, lab, atol=2).all(axis=2, keepdims=True)
    return im2tensor(rgb), np2tensor(mask)
