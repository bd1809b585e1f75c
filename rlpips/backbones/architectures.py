"""The convolutional networks whose activations LPIPS compares: AlexNet, VGG16 and SqueezeNet 1.1.

Layers, names and random initialisation are those of torchvision's `features`; only what LPIPS reads is built,
so there is no classifier. Slices keep torchvision's layer numbers, as in `lpips`: `net.slice2.3.weight`
here is `features.3.weight` there.
"""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from rlpips.system.autograd import eager

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their size in bytes


class AlexNetFeatures(NamedTuple):
    """Activations of AlexNet after each of its five ReLUs."""

    relu1: Tensor
    relu2: Tensor
    relu3: Tensor
    relu4: Tensor
    relu5: Tensor


class VGG16Features(NamedTuple):
    """Activations of VGG16 after the last ReLU of each of its five blocks."""

    relu1_2: Tensor
    relu2_2: Tensor
    relu3_3: Tensor
    relu4_3: Tensor
    relu5_3: Tensor


class SqueezeNetFeatures(NamedTuple):
    """Activations of SqueezeNet 1.1 at seven depths."""

    relu1: Tensor
    relu2: Tensor
    relu3: Tensor
    relu4: Tensor
    relu5: Tensor
    relu6: Tensor
    relu7: Tensor


class _Kept(NamedTuple):
    """A copy of a weight in channels-last memory, and what the weight was when it was made.

    Attributes:
        source: shares the weight's memory.
        version: counts changes of it.
        sums: of the bits of each output channel's values.
        copy: the copy.
    """

    source: Tensor
    version: int
    sums: Tensor
    copy: Tensor


_kept: MutableMapping[Tensor, _Kept] = WeakTensorKeyDictionary()


def laid_out(weight: Tensor) -> Tensor:
    """Return a weight `(O, I, h, w)` as a CPU's convolutions of channels-last activations read it fastest.

    Parameters are plain contiguous tensors to whoever looks at them. Laying them out takes up to half of the
    time of small images, so a copy of frozen ones is kept until they change: by assignment to `.data`, an
    operation in place, or one in place on `.data`, which PyTorch does not count. Sums of bits tell that.
    """
    last = torch.channels_last
    if weight.device.type != "cpu" or not eager() or weight.is_contiguous(memory_format=last):
        return weight
    plain = type(weight) is nn.Parameter and weight.is_contiguous()
    if weight.requires_grad or not plain or weight.is_inference():
        return weight.contiguous(memory_format=last)
    kept = _kept.get(weight)
    sums = _sums(weight)
    if (
        kept is None
        or not weight.is_set_to(kept.source)
        or weight._version != kept.version
        or not torch.equal(sums, kept.sums)
    ):
        source = weight.detach()
        _kept[weight] = kept = _Kept(source, weight._version, sums, source.contiguous(memory_format=last))
    return kept.copy


def _sums(weight: Tensor) -> Tensor:
    """Add the bits of each output channel's values as integers, which any change of one value changes."""
    integers = _INTEGERS[weight.element_size()]
    return weight.detach().flatten(1).view(integers).sum(dim=1, dtype=integers)


class Conv2d(nn.Conv2d):
    """A convolution of channels-last activations."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = super()._conv_forward(input, laid_out(weight), bias)
        return out


class ImageConv2d(nn.Conv2d):
    """The convolution that images enter, which on a CPU leaves activations in channels-last memory.

    A stride of s over three channels is the same sum as none over the 3 * s * s channels of s x s pixels side
    by side, which takes a CPU a third of the time in the backward pass. Where there is none, the stride is
    faster. The mode decides, not the images, so that equal images stay equal if one needs a gradient.

    Under autocast it rounds what it returns and not the images, which would make most of the error.
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
        if x.device.type != "cpu" or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return super().forward(x)
        # permute and pad rather than contiguous(memory_format), which vmap does not know
        x = x.permute(0, 2, 3, 1)
        if not torch.is_grad_enabled():
            x = x.contiguous().permute(0, 3, 1, 2)
            out: Tensor = self._conv_forward(x, laid_out(self.weight), self.bias)
            return out
        stride, size, edge = self.stride[0], self.kernel_size[0], int(self.padding[0])
        reach = -(-size // stride)  # of the kernel, in blocks of s x s pixels
        rows, columns = ((n + 2 * edge - size) // stride + reach for n in x.shape[1:3])
        below, right = rows * stride - x.shape[1] - edge, columns * stride - x.shape[2] - edge
        x = F.pad(x, (0, 0, edge, right, edge, below))
        weight = laid_out(self.weight)
        if stride > 1:
            x = x.reshape(-1, rows, stride, columns, stride, x.shape[3]).transpose(2, 3).flatten(3)
            weight = F.pad(weight, (0, reach * stride - size) * 2)
            weight = weight.reshape(*weight.shape[:2], reach, stride, reach, stride)
            weight = weight.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
        return F.conv2d(x.permute(0, 3, 1, 2), weight, self.bias)


class MaxPool2d(nn.MaxPool2d):
    """Pooling that finds the places of maxima again when a gradient needs them, rather than store them."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool `(N, C, H, W)`."""
        pooled: Tensor
        if torch.is_grad_enabled() and x.requires_grad and eager():
            pooled = _Pool.apply(x, (self.kernel_size, self.stride, self.padding, 1, self.ceil_mode))
        else:
            pooled = super().forward(x)
        return pooled


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.window = window
        pooled: Tensor = F.max_pool2d(x, *window)
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            _, places = torch.ops.aten.max_pool2d_with_indices(x, *_pairs(ctx.window))
        found: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *_pairs(ctx.window), places)
        return found, None


def _pairs(window: tuple[Any, ...]) -> tuple[Any, ...]:
    """Write a window as the operators want it: numbers for height and width."""
    return (*([each, each] for each in window[:4]), window[4])


class Fire(nn.Module):
    """SqueezeNet's module: a 1x1 squeeze, then 1x1 and 3x3 expansions side by side (arXiv 1602.07360)."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = Conv2d(channels, squeezed, 1)
        self.expand1x1 = Conv2d(squeezed, expanded, 1)
        self.expand3x3 = Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, channels, H, W)` to `(N, 2 * expanded, H, W)`."""
        x = self.squeeze(x).relu_()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1).relu_()


def _alexnet_layers() -> list[nn.Module]:
    return [
        ImageConv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True),
        MaxPool2d(3, 2), Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True),
        MaxPool2d(3, 2), Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True),
        Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True),
        Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True),
    ]  # fmt: skip


def _vgg16_layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 3
    for block, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        if block:
            layers.append(MaxPool2d(2, 2))
        for _ in range(depth):
            conv = Conv2d if layers else ImageConv2d
            layers += [conv(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
    return layers


def _squeezenet_layers() -> list[nn.Module]:
    def pool() -> nn.Module:
        return MaxPool2d(3, 2, ceil_mode=True)

    return [
        ImageConv2d(3, 64, 3, stride=2), nn.ReLU(inplace=True),
        pool(), Fire(64, 16, 64), Fire(128, 16, 64),
        pool(), Fire(128, 32, 128), Fire(256, 32, 128),
        pool(), Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        Fire(512, 64, 256),
    ]  # fmt: skip


def _init_default(conv: nn.Conv2d) -> None:
    conv.reset_parameters()


def _init_vgg16(conv: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)


def _init_squeezenet(conv: nn.Conv2d) -> None:
    nn.init.kaiming_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)


@dataclass(frozen=True)
class Architecture:
    """What distinguishes one backbone from another.

    Attributes:
        name: LPIPS' name for it.
        checkpoint: name of its ImageNet weights in the registry.
        layers: makes the list of layers, numbered as torchvision's `features`.
        ends: for each slice, the number of the layer after its last one.
        channels: channels of each slice's output.
        output: the named tuple that `forward` returns.
        min_size: the least height and width that leave something after the last pooling.
        init: fills one convolution with torchvision's random initial weights.
    """

    name: str
    checkpoint: str
    layers: Callable[[], list[nn.Module]]
    ends: tuple[int, ...]
    channels: tuple[int, ...]
    output: Callable[..., Any]
    min_size: int
    init: Callable[[nn.Conv2d], None]


ARCHITECTURES = {
    "alex": Architecture(
        "alex", "alexnet", _alexnet_layers, (2, 5, 8, 10, 12), (64, 192, 384, 256, 256),
        AlexNetFeatures, 31, _init_default,
    ),
    "vgg": Architecture(
        "vgg", "vgg16", _vgg16_layers, (4, 9, 16, 23, 30), (64, 128, 256, 512, 512),
        VGG16Features, 16, _init_vgg16,
    ),
    "squeeze": Architecture(
        "squeeze", "squeezenet1_1", _squeezenet_layers, (2, 5, 8, 10, 11, 12, 13),
        (64, 128, 256, 384, 384, 512, 512), SqueezeNetFeatures, 17, _init_squeezenet,
    ),
}  # fmt: skip


def architecture(net: str) -> Architecture:
    """Look an architecture up by LPIPS' name: 'alex', 'vgg' (or 'vgg16') or 'squeeze'.

    Raises:
        ValueError: no such backbone.
    """
    try:
        return ARCHITECTURES["vgg" if net == "vgg16" else net]
    except (KeyError, TypeError):
        raise ValueError(f"net={net!r} is unknown; choose 'alex', 'vgg' or 'squeeze'") from None


class Backbone(nn.Module):
    """A backbone cut into the slices `slice1`, `slice2`, ... whose outputs LPIPS compares.

    Its parameters are not initialised: load a state dict or call `init_random`.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.N_slices = len(arch.ends)
        self._arch = arch
        with torch.device("meta"):
            layers = arch.layers()
        for k, (start, end) in enumerate(itertools.pairwise((0, *arch.ends)), start=1):
            named = {str(i): layers[i] for i in range(start, end)}
            self.add_module(f"slice{k}", nn.Sequential(OrderedDict(named)))
        self.to_empty(device=torch.empty(0).device)  # get_default_device sees no `with` before torch 2.7

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Backbone":
        """Move or convert the parameters, of which no copies are kept where they were."""
        for parameter in self.parameters():
            _kept.pop(parameter, None)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def init_random(self) -> None:
        """Fill the parameters from torch's global generator, as torchvision's constructors do."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                self._arch.init(module)

    def load_features(self, features: Mapping[str, Tensor]) -> None:
        """Copy in the tensors of a state dict with torchvision's names, `features.0.weight` and so on."""
        names = {key: "features." + key.split(".", 1)[1] for key in self.state_dict()}
        self.load_state_dict({key: features[name] for key, name in names.items()})

    @property
    def in_channels(self) -> int | None:
        """How many channels images must have, if the first layer says so."""
        channels: int | None = getattr(next(next(self.children()).children(), None), "in_channels", None)
        return channels

    def activations(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images `(N, 3, H, W)`, already scaled, to one activation a slice, in any memory format."""
        activations = []
        for part in self.children():
            x = part(x)
            activations.append(x)
        return tuple(activations)

    def forward(self, x: Tensor) -> Any:
        """Map images `(N, 3, H, W)`, already scaled, to a named tuple: a contiguous activation a slice."""
        return self._arch.output(*(f.contiguous() for f in self.activations(x)))
