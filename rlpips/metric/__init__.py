"""The metric: the module `LPIPS`, its formula, and the faster ways to compute it."""

from rlpips.metric.formula import normalize_tensor, spatial_average, upsample
from rlpips.metric.heads import NetLinLayer, ScalingLayer
from rlpips.metric.lpips import LPIPS
from rlpips.metric.reference import Reference

__all__ = [
    "LPIPS",
    "NetLinLayer",
    "Reference",
    "ScalingLayer",
    "normalize_tensor",
    "spatial_average",
    "upsample",
]
