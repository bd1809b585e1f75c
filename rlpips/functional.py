"""The metric as pure functions of images, features or embeddings and of its weights, for `torch.func`.

`lpips` is `distance` of `features`. All functions can be differentiated by images and by weights, forwards,
backwards and repeatedly, and mapped with `vmap` over either. The weights come as a dict of tensors, by the
names that they have in the metric:

    metric = rlpips.LPIPS(net="vgg")
    parameters = dict(metric.named_parameters())
    gradient = torch.func.grad(functional.lpips, argnums=1)(parameters, x, y)

The names tell the backbone. `metric.state_dict()` will do as well, but lists each head twice, of which the
one at `lin0...` counts and the one at `lins.0...` is not read. There is no dropout.

Images are one, `(3, H, W)`, as inside `vmap`, or a batch, `(N, 3, H, W)`; what is returned of one image has
no dimension for a batch. Grey ones, `(1, H, W)`, `(H, W)` or `(N, 1, H, W)`, count as RGB.
"""

import functools
import threading
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rlpips.backbones.architectures import ARCHITECTURES, Backbone
from rlpips.metric.fast_path import can_run_fast, fast_layer_maps
from rlpips.metric.formula import (
    at_least_float32,
    average_and_sum,
    layer_maps,
    normalize_tensor,
    weighted_sum,
)
from rlpips.metric.heads import ScalingLayer
from rlpips.metric.inputs import as_batch, check_image, check_pair
from rlpips.metric.lpips import LPIPS

Parameters = Mapping[str, Tensor]

_VERSIONS = ("0.1", "0.0")


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
        parameters: of the metric, as above.
        in0: `(3, H, W)` or `(N, 3, H, W)`, RGB in [-1, 1], floating point, on the device of the parameters.
        in1: likewise; one image is compared with each of a batch.
        version: '0.1', or '0.0' for the heads of the paper's first version.
        normalize: the images are in [0, 1].
        spatial: return a map of distances instead of their average.

    Returns:
        A scalar for two single images, else `(N,)`; with `spatial=True` `(H, W)` or `(N, H, W)`. Of the wider
        dtype of images and parameters.

    Raises:
        TypeError: not tensors, or not of a usable dtype.
        ValueError: parameters of no metric, an unknown version, shapes that do not fit, images too small for
            the backbone, wrong device.
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
    """Return the activations of images in each layer that counts, as `metric.reference(images).features`.

    Args:
        parameters: of the metric, as above; those of the heads are not needed.
        images: `(3, H, W)` or `(N, 3, H, W)`, as for `lpips`.
        version: as for `lpips`.
        normalize: the images are in [0, 1].

    Returns:
        `(C, h, w)` or `(N, C, h, w)` for each of five layers (seven with SqueezeNet), not yet of unit length.

    Raises:
        TypeError: not a tensor, or not of a usable dtype.
        ValueError: as from `lpips`.
    """
    return _features(parameters, "images", images, version, normalize)


def heads(parameters: Parameters) -> tuple[Tensor, ...]:
    """Return the weights of the channels of each layer, `(C,)`, in float32 at least.

    Without any heads among the parameters, as of `LPIPS(lpips=False)`, all channels weigh 1.

    Raises:
        ValueError: parameters of no metric, or the heads of some layers alone.
    """
    arch = ARCHITECTURES[_net(parameters)]
    like = parameters[_NAMES[arch.name][0]]
    found = [  # dropout, which may come first, has a number but no weight
        parameters.get(f"lin{k}.model.1.weight", parameters.get(f"lin{k}.model.0.weight"))
        for k in range(len(arch.channels))
    ]
    if not any(weight is not None for weight in found):
        return tuple(at_least_float32(like.new_ones(channels)) for channels in arch.channels)
    if missing := [f"lin{k}" for k, weight in enumerate(found) if weight is None]:
        raise ValueError(f"parameters lack the heads {', '.join(missing)}, but hold others; pass all or none")
    return tuple(at_least_float32(weight.flatten()) for weight in found if weight is not None)


def distance(
    features0: Sequence[Tensor],
    features1: Sequence[Tensor],
    heads: Sequence[Tensor],
    *,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Return the distances of images from their features.

    Args:
        features0: for each layer `(C, h, w)` or `(N, C, h, w)`, as from `features`.
        features1: likewise; one image is compared with each of a batch.
        heads: for each layer `(C,)`, as from `heads`.
        size: return a map of distances of this height and width instead of their average.

    Returns:
        A scalar for two single images, else `(N,)`; with `size` `(H, W)` or `(N, H, W)`. In float32 at least.

    Raises:
        ValueError: there are not as many layers in each.
    """
    pairs = list(zip(map(_batch, features0), map(_batch, features1), strict=True))
    if all(can_run_fast(f0.shape, f1.shape) for f0, f1 in pairs):
        maps = fast_layer_maps(pairs, heads)
    else:
        maps = layer_maps(pairs, [functools.partial(weighted_sum, weight=weight) for weight in heads])
    total = average_and_sum(maps, size)[0].squeeze(1)
    if size is None:
        total = total.flatten()
    return total[0] if features0[0].ndim == features1[0].ndim == 3 else total


def embedding(features: Sequence[Tensor], heads: Sequence[Tensor]) -> Tensor:
    """Return vectors whose squared Euclidean distances are the metric: `(a - b).square().sum(-1)`.

    Args:
        features: for each layer `(C, h, w)` or `(N, C, h, w)`, as from `features`.
        heads: for each layer `(C,)`, as from `heads`; not negative, for the root of a weight would be NaN.
            A weight of 0, whose root has no derivative, counts as constant.

    Returns:
        `(D,)` or `(N, D)`, in float32 at least. For each layer, the values of all channels at the first
        position, then at the next.

    Raises:
        ValueError: there are not as many layers in each.
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
    """Return `features` of images, which errors call by a name."""
    net = _net(parameters)
    if version not in _VERSIONS:
        raise ValueError(f"version={version!r} is unknown; choose '0.1' or '0.0'")
    like = parameters[_NAMES[net][0]]
    batch = as_batch(images)
    check_image(name, batch, like=like, min_size=ARCHITECTURES[net].min_size)
    given = {key: parameters[key] for key in _NAMES[net]}
    for key, constant in _SCALING.items():
        given[key] = parameters[key] if key in parameters else constant.to(like.device, like.dtype)
    found: tuple[Tensor, ...] = functional_call(_trunks.made[net, version], given, (batch, normalize))
    return found if images.ndim == 4 else tuple(f[0] for f in found)


def _batch(tensor: Tensor) -> Tensor:
    """Make a batch of one image's features."""
    return tensor[None] if tensor.ndim == 3 else tensor


def _net(parameters: Parameters) -> str:
    """Tell the backbone from the parameters' names."""
    for net, names in _NAMES.items():
        if all(name in parameters for name in names):
            return net
    raise ValueError(
        "parameters must be those of a whole metric, dict(metric.named_parameters()), with names such as "
        f"'net.slice1.0.weight'; got {', '.join(map(repr, list(parameters)[:3])) or 'none'}"
    )


class _Trunk(LPIPS):
    """The way from images to features, without weights of its own."""

    def __init__(self, net: str, version: str) -> None:
        nn.Module.__init__(self)  # no heads, and no weights to be drawn
        self.version = version
        with torch.device("meta"):
            self.scaling_layer, self.net = ScalingLayer(), Backbone(ARCHITECTURES[net])

    def forward(self, images: Tensor, normalize: bool) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Map images `(N, 3, H, W)` to features."""
        return tuple(self.net.features(self._scale(images, normalize)))


class _Trunks(threading.local):
    """The modules that `functional_call` lends the parameters to, of each thread its own."""

    def __init__(self) -> None:
        self.made = {
            (net, version): _Trunk(net, version) for net in ARCHITECTURES for version in ("0.1", "0.0")
        }


_trunks = _Trunks()
_NAMES = {net: [name for name, _ in _trunks.made[net, "0.1"].named_parameters()] for net in ARCHITECTURES}
with torch.device("cpu"):
    _SCALING = {f"scaling_layer.{name}": buffer for name, buffer in ScalingLayer().named_buffers()}
