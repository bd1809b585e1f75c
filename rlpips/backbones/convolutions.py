"""Convolutions of activations in channels-last memory, the layout in which a CPU computes them fastest."""

from collections.abc import MutableMapping
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from rlpips.system.autograd import eager

_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # sizes in bytes


class _LaidOut(NamedTuple):
    """A channels-last copy of a weight, and the state of the weight when the copy was made.

    Attributes:
        source: a tensor that shares the weight's memory.
        version: PyTorch's count of in-place changes.
        checksums: one for each output channel.
        copy: the copy.
    """

    source: Tensor
    version: int
    checksums: Tensor
    copy: Tensor


_laid_out: MutableMapping[Tensor, _LaidOut] = WeakTensorKeyDictionary()


def laid_out(weight: Tensor) -> Tensor:
    """Return a convolution's weight `(O, I, h, w)` in the memory layout that is fastest.

    On a CPU this is channels-last, while parameters stay contiguous for all other code. The copy takes up to
    half of the time that small images need, so the copy of a frozen weight is cached. A changed weight is
    copied again. PyTorch counts in-place changes, but not those through `.data`; checksums detect them.
    """
    last = torch.channels_last
    if weight.device.type != "cpu" or not eager() or weight.is_contiguous(memory_format=last):
        return weight
    plain = type(weight) is nn.Parameter and weight.is_contiguous()
    if weight.requires_grad or not plain or weight.is_inference():
        return weight.contiguous(memory_format=last)
    cached = _laid_out.get(weight)
    checksums = _checksums(weight)
    if (
        cached is None
        or not weight.is_set_to(cached.source)
        or weight._version != cached.version
        or not torch.equal(checksums, cached.checksums)
    ):
        source = weight.detach()
        copy = source.contiguous(memory_format=last)
        _laid_out[weight] = cached = _LaidOut(source, weight._version, checksums, copy)
    return cached.copy


def forget_layout(weight: Tensor) -> None:
    """Free the cached copy of a weight, if there is one."""
    _laid_out.pop(weight, None)


def _checksums(weight: Tensor) -> Tensor:
    """Read the bits of a weight as integers and add them per output channel.

    A change of one value always changes the sum of its channel.
    """
    integer = _INTEGER_OF_SIZE[weight.element_size()]
    return weight.detach().flatten(1).view(integer).sum(dim=1, dtype=integer)


class Conv2d(nn.Conv2d):
    """A convolution of channels-last activations."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = super()._conv_forward(input, laid_out(weight), bias)
        return out


class ImageConv2d(nn.Conv2d):
    """The first convolution, of images: `image_conv2d`.

    Under autocast it runs in float32 and rounds only its output. Rounding the images first would cause most
    of the error of the metric.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images `(N, 3, H, W)`."""
        device = x.device.type
        rounding = device != "meta" and torch.is_autocast_enabled(device)
        if rounding and self.weight.dtype == torch.float32:
            with torch.autocast(device, enabled=False):
                return self._convolve(x.float()).to(torch.get_autocast_dtype(device))
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        return image_conv2d(x, self.weight, self.bias, self.stride[0], int(self.padding[0]))


def image_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0
) -> Tensor:
    """Compute `F.conv2d` of images `(N, 3, H, W)`. On a CPU, the output is in channels-last memory.

    With gradients enabled, a CPU runs `space_to_depth_conv2d`, which takes a third of the time in the
    backward pass. Without, the strided convolution is faster. The choice depends on the grad mode and not on
    `requires_grad`, so that equal images stay at distance 0 even if only one of them needs a gradient.
    """
    if x.device.type != "cpu" or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return F.conv2d(x, weight, bias, stride, padding)
    weight = laid_out(weight)
    if torch.is_grad_enabled():
        return space_to_depth_conv2d(x, weight, bias, stride, padding)
    # permute rather than contiguous(memory_format), which vmap does not support
    x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, stride, padding)


def space_to_depth_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    """Compute `F.conv2d(x, weight, bias, stride, padding)` as a convolution without a stride.

    With stride s, the output at position i is, along one axis and for each channel,

        out[i] = sum_k weight[k] x[s i + k],    x padded with zeros.

    Write k = s q + r with r < s. Each block of s pixels becomes one pixel with s times the channels,
    x'[j, r] = x[s j + r], and the weight, padded with zeros to a multiple of s, likewise. Then

        out[i] = sum_q sum_r weight[s q + r] x[s (i + q) + r] = sum_q weight'[q] . x'[i + q],

    which has no stride. In two dimensions a block is s x s pixels and x' has s² times the channels.

    Args:
        x: images `(N, C, H, W)`.
        weight: `(O, C, k, k)`.
        bias: `(O,)`, or None.
        stride: s, for both axes.
        padding: zeros on each side of the images.

    Returns:
        `(N, O, h, w)`, in channels-last memory.
    """
    size = weight.shape[2]
    blocks = -(-size // stride)  # that the kernel covers along an axis
    # permute and pad rather than contiguous(memory_format), which vmap does not support
    x = x.permute(0, 2, 3, 1)
    rows, columns = ((n + 2 * padding - size) // stride + blocks for n in x.shape[1:3])
    below, right = rows * stride - x.shape[1] - padding, columns * stride - x.shape[2] - padding
    x = F.pad(x, (0, 0, padding, right, padding, below))
    if stride > 1:
        x = x.reshape(-1, rows, stride, columns, stride, x.shape[3]).transpose(2, 3).flatten(3)
        weight = F.pad(weight, (0, blocks * stride - size) * 2)
        weight = weight.reshape(*weight.shape[:2], blocks, stride, blocks, stride)
        weight = weight.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias)
