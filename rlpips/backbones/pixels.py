"""Features of the image itself: block transforms as in JPEG, at one or more scales.

A learned backbone sees much that people do not see, and an attacker uses it. Linear filters of the pixels are
harder to fool: a small change of the pixels is a small change of them.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from rlpips.backbones.convolutions import image_conv2d

BLOCK = 8
STRIDE = BLOCK // 2
CHANNELS = BLOCK * BLOCK + 2 * STRIDE * STRIDE
MOST_SCALES = 2
_LUMA_AND_COLOURS = ((0.299, 0.587, 0.114), (-0.147, -0.289, 0.436), (0.615, -0.515, -0.100))  # as in YUV


def pixel_filters() -> Tensor:
    """Return the filters of `PixelFeatures`, `(96, 3, 8, 8)`, float64."""
    position = torch.arange(BLOCK, dtype=torch.float64)
    waves = torch.cos(math.pi / BLOCK * (position + 0.5) * position[:, None]) * math.sqrt(2 / BLOCK)
    waves[0] /= math.sqrt(2)
    colours = torch.tensor(_LUMA_AND_COLOURS, dtype=torch.float64)
    colours /= colours.norm(dim=1, keepdim=True)
    filters = []
    for colour, kept in zip(colours, (BLOCK, STRIDE, STRIDE), strict=True):
        bank = torch.einsum("c,ay,bx->abcyx", colour, waves[:kept], waves[:kept]).flatten(0, 1)
        bank[0] /= BLOCK  # the mean of a block, which would be much larger than the rest
        filters.append(bank)
    return torch.cat(filters)


class PixelFeatures(nn.Module):
    """The discrete cosine transform of overlapping blocks of an image, at one or more scales.

    Blocks are 8 x 8 pixels, four pixels apart. Of each the features are all 64 coefficients of luma (DCT-II,
    orthonormal), and the 16 coefficients of lowest frequency of each of two colour differences. The first
    coefficient of each is divided by 8, which makes it the block's mean. Each further scale halves the image.

    The filters are fixed. They are not in the state dict.

    Args:
        scales: how many scales.
    """

    filters: Tensor

    def __init__(self, scales: int) -> None:
        super().__init__()
        if not 1 <= scales <= MOST_SCALES:
            raise ValueError(f"scales={scales} must be in 1 ... {MOST_SCALES}")
        self.scales = scales
        self.register_buffer("filters", pixel_filters().to(torch.get_default_dtype()), persistent=False)

    def _apply(self, fn: object, recurse: bool = True) -> "PixelFeatures":
        """Move or convert the module, and compute the filters again, which a narrow dtype has rounded."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not self.filters.is_meta:
            self.filters.copy_(pixel_filters())
        return self

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the features of each scale, `(N, 96, h, w)`, of images `(N, 3, H, W)` in [-1, 1]."""
        return pixel_features(x, self.filters, self.scales)


def pixel_features(x: Tensor, filters: Tensor, scales: int) -> Iterator[Tensor]:
    """Yield what `PixelFeatures` yields, given its filters in the dtype and on the device of the features."""
    x = x.to(filters.dtype) / 2
    for scale in range(scales):
        if scale:
            x = F.avg_pool2d(x, 2)
        yield image_conv2d(x, filters, stride=STRIDE)
