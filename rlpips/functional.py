"""The metric as pure functions of images and weights, for `torch.func`.

`lpips(parameters, in0, in1)` is the `distance` of the `features` of both images. You can differentiate all
functions by images and by weights, forwards, backwards and repeatedly, and map them over either with `vmap`.
The weights are a dict of tensors with the names that they have in the metric:

    metric = rlpips.LPIPS(net="vgg")
    parameters = dict(metric.named_parameters())
    gradient = torch.func.grad(functional.lpips, argnums=1)(parameters, x, y)

The backbone is known from the names. `metric.state_dict()` works too. It has two entries for each head; the
one at `lin0...` is read, the one at `lins.0...` is not. There is no dropout.

Images are a batch, `(N, 3, H, W)`, or a single image, `(3, H, W)`, as inside `vmap`. Results for a single
image have no batch dimension. Grey images, `(N, 1, H, W)`, `(1, H, W)` or `(H, W)`, count as RGB.
"""

import functools
import threading
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.func import functional_call

from rlpips._choices import VERSIONS
from rlpips.backbones.architectures import ARCHITECTURES, Architecture, Backbone
from rlpips.backbones.pixels import CHANNELS, MOST_SCALES, pixel_features, pixel_filters
from rlpips.metric.fast_path import can_run_fast, fast_layer_maps
from rlpips.metric.features import FeatureNetwork
from rlpips.metric.formula import (
    at_least_float32,
    average_and_sum,
    layer_maps,
    normalize_tensor,
    weighted_sum,
)
from rlpips.metric.heads import ScalingLayer
from rlpips.metric.inputs import as_batch, check_image, check_pair

Parameters = Mapping[str, Tensor]


def lpips(
    parameters: Parameters,
    in0: Tensor,
    in1: Tensor,
    *,
    version: str = "0.1",
    normalize: bool = False,
    spatial: bool = False,
) -> Tensor:
    """Return the distances of images.

    Args:
        parameters: the weights of a metric, by name: `dict(metric.named_parameters())`.
        in0: `(3, H, W)` or `(N, 3, H, W)`, RGB in [-1, 1], floating point, on the device of the parameters.
        in1: likewise. A single image is compared with each image of a batch.
        version: '0.1', or '0.0' for the heads of the paper's first version.
        normalize: the images are in [0, 1].
        spatial: return a map of distances instead of their average.

    Returns:
        A scalar for two single images, else `(N,)`; with `spatial=True` `(H, W)` or `(N, H, W)`. The dtype is
        the wider one of images and parameters.

    Raises:
        TypeError: the images are not tensors or have no usable dtype.
        ValueError: the parameters are not those of a metric, the version is unknown, shapes do not fit, or
            images are too small for the backbone or on another device.
    """
    features0, features1 = (
        _features(parameters, name, image, version, normalize) for name, image in (("in0", in0), ("in1", in1))
    )
    check_pair(as_batch(in0).shape, as_batch(in1).shape)
    size = (in0.shape[-2], in0.shape[-1]) if spatial else None
    value = distance(features0, features1, heads(parameters), size=size)
    dtype = torch.promote_types(in0.dtype, in1.dtype)
    return value.to(torch.promote_types(dtype, parameters[_NAMES[_net(parameters)][0]].dtype))


def features(
    parameters: Parameters, images: Tensor, *, version: str = "0.1", normalize: bool = False
) -> tuple[Tensor, ...]:
    """Return the features of images at each layer that the metric compares.

    Args:
        parameters: the weights of a metric, by name. Those of the heads are not needed.
        images: `(3, H, W)` or `(N, 3, H, W)`, RGB in [-1, 1], floating point, on the device of the
            parameters.
        version: '0.1' scales the images to the statistics of ImageNet, '0.0' does not.
        normalize: the images are in [0, 1].

    Returns:
        `(C, h, w)` or `(N, C, h, w)` for each of five layers (seven with SqueezeNet), before they are scaled
        to unit length, then for each scale of the pixels' features, if the parameters have heads for them.
        With floors, the floor is one more channel of each layer, whose weight is 0: the length of all
        channels is then the length with the floor.

    Raises:
        TypeError: the images are not a tensor or have no usable dtype.
        ValueError: the parameters are not those of a metric, the version is unknown, or the images have a
            wrong shape, are too small for the backbone or on another device.
    """
    return _features(parameters, "images", images, version, normalize)


def heads(parameters: Parameters) -> tuple[Tensor, ...]:
    """Return the weights of the channels of each layer, `(C,)`, in float32 or float64.

    If the parameters have no heads, as those of `LPIPS(lpips=False)`, all channels have weight 1.

    Args:
        parameters: the weights of a metric, by name.

    Raises:
        ValueError: the parameters are not those of a metric, or only some layers have a head.
    """
    arch = ARCHITECTURES[_net(parameters)]
    like = parameters[_NAMES[arch.name][0]]
    channels = (*arch.channels, *_scales(parameters, arch) * [CHANNELS])
    found = [  # the convolution comes second if there is dropout, else first
        parameters.get(f"lin{k}.model.1.weight", parameters.get(f"lin{k}.model.0.weight"))
        for k in range(len(channels))
    ]
    if not any(weight is not None for weight in found):
        found = [like.new_ones(each) for each in channels]
    if missing := [f"lin{k}" for k, weight in enumerate(found) if weight is None]:
        raise ValueError(f"parameters lack the heads {', '.join(missing)}, but hold others; pass all or none")
    weights = [at_least_float32(weight.flatten()) for weight in found if weight is not None]
    if "floors" in parameters:
        weights = [F.pad(weight, (0, 1)) for weight in weights]
    return tuple(weights)


def distance(
    features0: Sequence[Tensor],
    features1: Sequence[Tensor],
    heads: Sequence[Tensor],
    *,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Return the distances of images, given their features: the formula of LPIPS.

    Args:
        features0: the features of each layer, `(C, h, w)` or `(N, C, h, w)`. `features` returns them.
        features1: likewise. A single image is compared with each image of a batch.
        heads: the weights of each layer's channels, `(C,)`. `heads` returns them.
        size: return a map of distances with this height and width instead of their average.

    Returns:
        A scalar for two single images, else `(N,)`; with `size` `(H, W)` or `(N, H, W)`. The dtype is float32
        or float64.

    Raises:
        ValueError: the arguments have different numbers of layers.
    """
    pairs = list(zip(map(_batch, features0), map(_batch, features1), strict=True))
    if all(can_run_fast(f0.shape, f1.shape) for f0, f1 in pairs):
        maps = fast_layer_maps(pairs, heads, [None] * len(pairs))
    else:
        weighted = [functools.partial(weighted_sum, weight=weight) for weight in heads]
        maps = layer_maps(pairs, weighted, [None] * len(pairs))
    total = average_and_sum(maps, size)[0].squeeze(1)
    if size is None:
        total = total.flatten()
    return total[0] if features0[0].ndim == features1[0].ndim == 3 else total


def embedding(features: Sequence[Tensor], heads: Sequence[Tensor]) -> Tensor:
    """Return one vector per image, whose squared Euclidean distances are the distances of the images.

    For vectors `a` and `b`, `(a - b).square().sum(-1)` equals `distance` of the features.

    Args:
        features: the features of each layer, `(C, h, w)` or `(N, C, h, w)`. `features` returns them.
        heads: the weights of each layer's channels, `(C,)`. `heads` returns them. A negative weight gives
            NaN, because the vectors hold its square root. A weight of 0 counts as a constant, because its
            square root has no derivative.

    Returns:
        `(D,)` or `(N, D)`, in float32 or float64: layer by layer, the values of all channels at the first
        position, then at the next.

    Raises:
        ValueError: the arguments have different numbers of layers.
    """
    parts = []
    for f, weight in zip(map(_batch, features), heads, strict=True):
        share = weight / (f.shape[2] * f.shape[3])
        zero = share == 0
        root = share.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)
        unit = normalize_tensor(at_least_float32(f))
        parts.append((unit.permute(0, 2, 3, 1) * root).flatten(1))
    embeddings = torch.cat(parts, dim=1)
    return embeddings if features[0].ndim == 4 else embeddings[0]


def _features(
    parameters: Parameters, name: str, images: Tensor, version: str, normalize: bool
) -> tuple[Tensor, ...]:
    """Return what `features` returns; error messages call the images by this name."""
    net = _net(parameters)
    if version not in VERSIONS:
        raise ValueError(f"version={version!r} is unknown; choose '0.1' or '0.0'")
    like = parameters[_NAMES[net][0]]
    batch = as_batch(images)
    check_image(name, batch, like=like, min_size=ARCHITECTURES[net].min_size)
    given = {key: parameters[key] for key in _NAMES[net]}
    for key, constant in _SCALING.items():
        given[key] = parameters[key] if key in parameters else constant.to(like.device, like.dtype)
    found: tuple[Tensor, ...] = functional_call(_modules.made[net, version], given, (batch, normalize))
    scales = _scales(parameters, ARCHITECTURES[net])
    if scales:
        filters = _FILTERS.to(like.device, like.dtype)
        found += tuple(pixel_features(2 * batch - 1 if normalize else batch, filters, scales))
    floors = parameters.get("floors")
    if floors is not None:
        found = tuple(
            torch.cat([f, floor.to(f).expand_as(f[:, :1])], dim=1)
            for f, floor in zip(found, floors, strict=True)
        )
    return found if images.ndim == 4 else tuple(f[0] for f in found)


def _scales(parameters: Parameters, arch: Architecture) -> int:
    """Return how many scales of the pixels' features have heads."""
    first = len(arch.channels)
    return sum(
        any(f"lin{k}.model.{m}.weight" in parameters for m in (0, 1))
        for k in range(first, first + MOST_SCALES)
    )


def _batch(tensor: Tensor) -> Tensor:
    """Return features as a batch, also those of a single image."""
    return tensor[None] if tensor.ndim == 3 else tensor


def _net(parameters: Parameters) -> str:
    """Return the backbone that parameters belong to, by their names."""
    for net, names in _NAMES.items():
        if all(name in parameters for name in names):
            return net
    raise ValueError(
        "parameters must be those of a whole metric, dict(metric.named_parameters()), with names such as "
        f"'net.slice1.0.weight'; got {', '.join(map(repr, list(parameters)[:3])) or 'none'}"
    )


class _FeatureModule(FeatureNetwork):
    """The part of a metric from images to features. Its weights hold no values."""

    def __init__(self, net: str, version: str) -> None:
        super().__init__()
        self.version = version
        self.pixels = self.floors = None
        with torch.device("meta"):
            self.scaling_layer, self.net = ScalingLayer(), Backbone(ARCHITECTURES[net])

    def forward(self, images: Tensor, normalize: bool) -> tuple[Tensor, ...]:
        """Return the features of images `(N, 3, H, W)`."""
        return tuple(self._run(images, normalize))


class _FeatureModules(threading.local):
    """The modules that `functional_call` gives the parameters to. Each thread has its own."""

    def __init__(self) -> None:
        self.made = {
            (net, version): _FeatureModule(net, version) for net in ARCHITECTURES for version in VERSIONS
        }


_modules = _FeatureModules()
_NAMES = {net: [name for name, _ in _modules.made[net, "0.1"].named_parameters()] for net in ARCHITECTURES}
with torch.device("cpu"):
    _SCALING = {f"scaling_layer.{name}": buffer for name, buffer in ScalingLayer().named_buffers()}
    _FILTERS = pixel_filters()
