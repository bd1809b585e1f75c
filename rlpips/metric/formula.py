"""LPIPS as the paper defines it: Zhang et al. 2018 (arXiv 1801.03924), equation 1.

    d(x, y) = sum_l  1 / (H_l W_l)  sum_hw  sum_c  w_lc (u_lchw(x) - u_lchw(y))²
    u_l(x) = f_l(x) / (|f_l(x)| + 1e-10)

f_l(x) are the features of image x at layer l of the backbone, `(C_l, H_l, W_l)`; |.| is their length over
channels, so that u_l has unit length; w_l is the head of layer l, one learned weight per channel. The paper
writes the weights inside the square. Its code weighs the squares, and so do all published heads.

In flat regions features are small. Scaled to unit length they are not, so a change that nobody sees may turn
them around. Robust metrics therefore have a floor c_l for each layer, with which |f_l| becomes

    sqrt(|f_l(x)|² + c_l²)

`layer_maps` goes from features to a map of distances for each layer, `average_and_sum` from these maps to the
distance. `rlpips.metric.fused` computes the same maps faster.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

EPS = 1e-10

FeaturePairs = Iterable[tuple[Tensor, Tensor]]  # for each layer the features of both batches of images
Head = Callable[[Tensor], Tensor]  # weighs squared differences `(N, C, h, w)` and sums them to `(N, 1, h, w)`


def layer_maps(
    features: FeaturePairs, heads: Sequence[Head], floors: Sequence[Tensor | None]
) -> list[Tensor]:
    """Return the map of distances of each layer, `(N, 1, h, w)`.

    Args:
        features: for each layer the features of both batches of images, `(N, C, h, w)`. Either batch may hold
            one image, which is compared with each image of the other.
        heads: the head of each layer.
        floors: the floor of each layer, a scalar, or None.
    """
    each_layer = zip(features, heads, floors, strict=True)
    return [layer_map(f0, f1, head, floor) for (f0, f1), head, floor in each_layer]


def layer_map(f0: Tensor, f1: Tensor, head: Head, floor: Tensor | None = None) -> Tensor:
    """Return the map of distances of one layer, `(N, 1, h, w)`: unit length, squared difference, head."""
    unit0, unit1 = (normalize_tensor(at_least_float32(f), floor=floor) for f in (f0, f1))
    return head((unit0 - unit1).square())


def average_and_sum(maps: Sequence[Tensor], size: Sequence[int] | None = None) -> tuple[Tensor, list[Tensor]]:
    """Return the distance `(N, 1, 1, 1)` and the share of each layer: average over space, sum over layers.

    Args:
        maps: the map of distances of each layer, `(N, 1, h, w)`.
        size: resize the maps to this height and width instead of averaging them.
    """
    shares = [spatial_average(each) if size is None else upsample(each, size) for each in maps]
    return torch.stack(shares).sum(dim=0), shares


def normalize_tensor(in_feat: Tensor, eps: float = EPS, floor: Tensor | None = None) -> Tensor:
    """Scale features to unit length over channels, `f / (|f| + eps)`, with finite gradients at `f = 0`.

    With a floor, `f / (sqrt(|f|² + floor²) + eps)`: features that are much shorter stay short.

    Args:
        in_feat: `(N, C, H, W)`, floating point.
        eps: added to the length.
        floor: a scalar.

    Returns:
        The same shape and dtype. A vector of zeros stays zero. A length of 0, and one so small that adding
        `eps` rounds it away, counts as a constant 0. This is the limit of the gradient there; the derivative
        of the square root would be NaN.

    >>> normalize_tensor(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)).flatten()
    tensor([0.6000, 0.8000])
    """
    square = in_feat.square().sum(dim=1, keepdim=True)
    if floor is not None:
        square = square + floor.square()
    # eps rounds such lengths away, and their second derivatives would overflow
    negligible = square <= (torch.finfo(in_feat.dtype).eps / 8 * eps) ** 2
    length = square.masked_fill(negligible, 1).sqrt().masked_fill(negligible, 0)
    return in_feat * (1 / (length + eps))  # the derivative of a product costs less than that of a quotient


def weighted_sum(squares: Tensor, weight: Tensor | None) -> Tensor:
    """Sum `(N, C, h, w)` over channels to `(N, 1, h, w)`.

    Args:
        squares: `(N, C, h, w)`.
        weight: one weight per channel, `(C,)`; None for weights of 1.
    """
    weighted = squares if weight is None else squares * weight.view(-1, 1, 1)
    return weighted.sum(dim=1, keepdim=True)


def spatial_average(in_tens: Tensor, keepdim: bool = True) -> Tensor:
    """Average `(N, C, H, W)` over height and width, to `(N, C, 1, 1)`, or `(N, C)` without `keepdim`."""
    return in_tens.mean(dim=(2, 3), keepdim=keepdim)


def upsample(in_tens: Tensor, out_HW: Sequence[int] | int = (64, 64)) -> Tensor:
    """Resize `(N, C, h, w)` to `(N, C, *out_HW)`, bilinearly, with corners not aligned.

    An int resizes to a square.
    """
    size = out_HW if isinstance(out_HW, int) else tuple(out_HW)
    return F.interpolate(in_tens, size=size, mode="bilinear", align_corners=False)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert 16-bit floats to float32; return float32 and float64 unchanged."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
