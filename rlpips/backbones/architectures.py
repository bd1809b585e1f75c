"""The convolutional networks whose features LPIPS compares: AlexNet, VGG16 and SqueezeNet 1.1.

Layers, names and random initialisation are those of torchvision's `features`. Only the layers that LPIPS
reads are built; there is no classifier. Slices keep torchvision's layer numbers, as in `lpips`:
`net.slice2.3.weight` here is `features.3.weight` there.
"""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlpips.backbones.convolutions import Conv2d, ImageConv2d, forget_layout
from rlpips.backbones.pooling import MaxPool2d


class AlexNetFeatures(NamedTuple):
    """Features of AlexNet: its activations after each of its five ReLUs."""

    relu1: Tensor
    relu2: Tensor
    relu3: Tensor
    relu4: Tensor
    relu5: Tensor


class VGG16Features(NamedTuple):
    """Features of VGG16: its activations after the last ReLU of each of its five blocks."""

    relu1_2: Tensor
    relu2_2: Tensor
    relu3_3: Tensor
    relu4_3: Tensor
    relu5_3: Tensor


class SqueezeNetFeatures(NamedTuple):
    """Features of SqueezeNet 1.1: its activations at seven depths."""

    relu1: Tensor
    relu2: Tensor
    relu3: Tensor
    relu4: Tensor
    relu5: Tensor
    relu6: Tensor
    relu7: Tensor


class Fire(nn.Module):
    """SqueezeNet's block: a 1x1 convolution, then a 1x1 and a 3x3 one side by side (arXiv 1602.07360)."""

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
    """The description of a backbone.

    Attributes:
        name: its name in LPIPS.
        checkpoint: the name of its ImageNet weights in the registry.
        layers: returns new layers, numbered as in torchvision's `features`.
        ends: for each slice, the number of the layer after its last one.
        channels: the channels of each slice's output.
        output: the named tuple that `Backbone.forward` returns.
        min_size: the smallest height and width of an image, so that something is left after the last pooling.
        init: fills a convolution with random weights as torchvision does.
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
    """Return the architecture with this name: 'alex', 'vgg' (or 'vgg16') or 'squeeze'.

    Raises:
        ValueError: there is no backbone with this name.
    """
    try:
        return ARCHITECTURES["vgg" if net == "vgg16" else net]
    except (KeyError, TypeError):
        raise ValueError(f"net={net!r} is unknown; choose 'alex', 'vgg' or 'squeeze'") from None


class Backbone(nn.Module):
    """A network that is cut into slices `slice1`, `slice2`, ... LPIPS compares the output of each slice.

    The constructor does not initialise the parameters: call `load_features` or `init_random`.
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
        self.to_empty(device=torch.empty(0).device)  # before torch 2.7, get_default_device ignores `with`

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Backbone":
        """Move or convert the parameters, and free the cached copies of their old values."""
        for parameter in self.parameters():
            forget_layout(parameter)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def init_random(self) -> None:
        """Fill the parameters with random values from torch's global generator, as torchvision does."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                self._arch.init(module)

    def load_features(self, features: Mapping[str, Tensor]) -> None:
        """Load a state dict with torchvision's names, such as `features.0.weight`."""
        names = {key: "features." + key.split(".", 1)[1] for key in self.state_dict()}
        self.load_state_dict({key: features[name] for key, name in names.items()})

    @property
    def in_channels(self) -> int | None:
        """The number of channels that images must have, or None if the first layer does not say."""
        for part in self.children():
            for layer in part.children():  # no next(): torch.compile does not follow it before torch 2.7
                channels: int | None = getattr(layer, "in_channels", None)
                return channels
        return None

    def features(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the features of each slice, `(N, C, h, w)`, in any memory format.

        A slice runs when its features are asked for.

        Args:
            x: scaled images, `(N, 3, H, W)`.
        """
        for part in self.children():
            x = part(x)
            yield x

    def forward(self, x: Tensor) -> Any:
        """Return the features of each slice as a named tuple of contiguous tensors.

        Args:
            x: scaled images, `(N, 3, H, W)`.
        """
        return self._arch.output(*(f.contiguous() for f in self.features(x)))
