"""The metric: an `nn.Module` and its arithmetic."""

from rlpips.metric.lpips import (
    LPIPS,
    NetLinLayer,
    Reference,
    ScalingLayer,
    normalize_tensor,
    spatial_average,
    upsample,
)

__all__ = [
    "LPIPS",
    "NetLinLayer",
    "Reference",
    "ScalingLayer",
    "normalize_tensor",
    "spatial_average",
    "upsample",
]
