"""The rest of the names at the top level of `lpips`, which scripts for it and for R-LPIPS call.

Arrays of images are `(H, W, 3)` here, and tensors of one image `(1, 3, H, W)`, as in `lpips`.
"""

import importlib
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rlpips.errors import MissingExtraError
from rlpips.training.ranking import Dist2LogitLayer

Array = npt.NDArray[Any]
Scalar = np.floating[Any]


def _skimage(module: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(f"skimage.{module}")
    except ImportError as error:
        raise MissingExtraError(what, "classical") from error


def l2(p0: Array, p1: Array, range: float = 255.0) -> Scalar:
    """Half the mean squared difference of two arrays of any one shape, in units of `range`.

    A NumPy scalar: float32 for float32 arrays, float64 for bytes.
    """
    error: Scalar = 0.5 * np.mean(np.square(p0 / range - p1 / range))
    return error


def psnr(p0: Array, p1: Array, peak: float = 255.0) -> Scalar:
    """Peak signal-to-noise ratio in dB, of arrays of any one shape; infinite where they are equal.

    A NumPy scalar of the type that `l2` returns.
    """
    error = np.mean(np.square(1.0 * p0 - 1.0 * p1))
    with np.errstate(divide="ignore"):
        ratio: Scalar = 10 * np.log10(peak**2 / error)
    return ratio


def dssim(p0: Array, p1: Array, range: float = 255.0) -> Scalar:
    """Structural dissimilarity `(1 - SSIM) / 2` of two images `(H, W, C)`, of at least 7 x 7 pixels.

    Raises:
        MissingExtraError: scikit-image is not installed (extra 'classical').
    """
    metrics = _skimage("metrics", "dssim")
    distance: Scalar = (1 - metrics.structural_similarity(p0, p1, data_range=range, channel_axis=-1)) / 2
    return distance


def rgb2lab(input: Array) -> Array:
    """Turn an RGB image `(H, W, 3)` in [0, 255] into CIE Lab.

    Raises:
        MissingExtraError: scikit-image is not installed (extra 'classical').
    """
    lab: Array = _skimage("color", "rgb2lab").rgb2lab(input / 255.0)
    return lab


def tensor2np(tensor_obj: Tensor) -> Array:
    """Turn the first image of a batch `(N, C, H, W)` into a float32 array `(H, W, C)`, values unchanged."""
    return tensor_obj[0].detach().cpu().float().permute(1, 2, 0).numpy()


def np2tensor(np_obj: Array) -> Tensor:
    """Turn an array `(H, W, C)` into a float32 tensor `(1, C, H, W)`, values unchanged."""
    return torch.tensor(np.ascontiguousarray(np_obj), dtype=torch.float32).permute(2, 0, 1)[None]


def tensor2im(
    image_tensor: Tensor, imtype: npt.DTypeLike = np.uint8, cent: float = 1.0, factor: float = 255.0 / 2.0
) -> Array:
    """Turn the first image of a batch into `(H, W, C)`, from [-1, 1] to [0, 255]: `(x + cent) * factor`."""
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
    """Turn `(N, C, 1, 1)` into an array `(N, C)`."""
    return vector_tensor.detach().cpu().numpy()[:, :, 0, 0]


def tensor2tensorlab(image_tensor: Tensor, to_norm: bool = True, mc_only: bool = False) -> Tensor:
    """Turn the first image of a batch, RGB in [-1, 1], into CIE Lab, `(1, 3, H, W)`.

    Args:
        image_tensor: `(N, 3, H, W)`.
        to_norm: centre L at 0 and divide everything by 100.
        mc_only: only centre L.

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
    """Turn what `tensor2tensorlab` made back into RGB in [-1, 1], `(1, 3, H, W)`.

    Args:
        lab_tensor: `(N, 3, H, W)`, of which the first is taken.
        return_inbnd: also return a mask `(1, 1, H, W)`, 1 where the colour exists in RGB (within 2 of Lab).

    Raises:
        MissingExtraError: scikit-image is not installed (extra 'classical').
    """
    color = _skimage("color", "tensorlab2tensor")
    lab = tensor2np(lab_tensor).astype(np.float64) * 100
    lab[..., 0] += 50
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # colours outside RGB, which the mask tells
        rgb = 255 * np.clip(color.lab2rgb(lab), 0, 1)
    if not return_inbnd:
        return im2tensor(rgb)
    again = color.rgb2lab(rgb.astype(np.uint8))
    mask = np.isclose(again, lab, atol=2).all(axis=2, keepdims=True)
    return im2tensor(rgb), np2tensor(mask)


class BCERankingLoss(nn.Module):
    """LPIPS' training loss: binary cross entropy of the ranking network's guess and the judges' choice.

    `forward(d0, d1, judge)` takes distances `(N, 1, H, W)` and judgements of that shape in [-1, 1] (-1: all
    chose the first image, 1: all chose the second), returns a scalar, and keeps the guess as `self.logit`.
    """

    def __init__(self, chn_mid: int = 32) -> None:
        super().__init__()
        self.net = Dist2LogitLayer(chn_mid=chn_mid)
        self.loss = nn.BCELoss()

    def forward(self, d0: Tensor, d1: Tensor, judge: Tensor) -> Tensor:
        """Return the loss."""
        self.logit = self.net(d0, d1)
        loss: Tensor = self.loss(self.logit, (judge + 1) / 2)
        return loss


class FakeNet(nn.Module):
    """Base of the classical distances, which have the interface of a network.

    Args:
        use_gpu: return the result on the GPU, where there is one.
        colorspace: 'Lab' or 'RGB'.

    Raises:
        ValueError: another colour space.
    """

    def __init__(self, use_gpu: bool = True, colorspace: str = "Lab") -> None:
        super().__init__()
        if colorspace not in ("Lab", "RGB"):
            raise ValueError(f"colorspace={colorspace!r} is unknown; choose 'Lab' or 'RGB'")
        self.use_gpu = use_gpu
        self.colorspace = colorspace

    def _images(self, in0: Tensor, in1: Tensor) -> tuple[Array, Array]:
        """Convert to arrays `(H, W, 3)`: Lab as it is, or RGB in [0, 255]."""
        if self.colorspace == "Lab":
            in0, in1 = tensor2tensorlab(in0, to_norm=False), tensor2tensorlab(in1, to_norm=False)
            return tensor2np(in0), tensor2np(in1)
        return tensor2im(in0).astype(np.float64), tensor2im(in1).astype(np.float64)

    def _result(self, value: Scalar) -> Tensor:
        return torch.tensor(
            [float(value)], device="cuda" if self.use_gpu and torch.cuda.is_available() else "cpu"
        )

    @staticmethod
    def _check_single(in0: Tensor) -> None:
        if in0.shape[0] != 1:
            raise ValueError(
                f"this distance takes one image at a time, shape (1, 3, H, W), got {tuple(in0.shape)}"
            )


class L2(FakeNet):
    """Mean squared difference of two images `(1, 3, H, W)` in [-1, 1], as a tensor `(1,)`.

    In RGB it is differentiable and in the units of the input; in Lab it is `l2` with a range of 100.
    """

    def forward(self, in0: Tensor, in1: Tensor, retPerLayer: bool | None = None) -> Tensor:  # noqa: ARG002
        """Return the distance; `retPerLayer` is taken for the sake of a common interface."""
        self._check_single(in0)
        if self.colorspace == "RGB":
            return (in0 - in1).square().mean(dim=(1, 2, 3))
        return self._result(l2(*self._images(in0, in1), range=100.0))


class DSSIM(FakeNet):
    """Structural dissimilarity of two images `(1, 3, H, W)` in [-1, 1], as a tensor `(1,)`; see `dssim`."""

    def forward(self, in0: Tensor, in1: Tensor, retPerLayer: bool | None = None) -> Tensor:  # noqa: ARG002
        """Return the distance; `retPerLayer` is taken for the sake of a common interface."""
        self._check_single(in0)
        return self._result(
            dssim(*self._images(in0, in1), range=100.0 if self.colorspace == "Lab" else 255.0)
        )


def print_network(net: nn.Module) -> None:
    """Print a network with all its parts, and the number of its parameters."""
    print("Network", nn.Module.__repr__(net))  # noqa: T201  LPIPS would show itself in a line
    print(f"Total number of parameters: {sum(p.numel() for p in net.parameters())}")  # noqa: T201
