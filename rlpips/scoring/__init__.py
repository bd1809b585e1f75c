"""Distances of files, arrays and tensors: one pair, many pairs, folders."""

from rlpips.scoring.distances import (
    Measured,
    cached_metric,
    distance,
    measure_all,
    measure_pairs,
    of_one_size,
)
from rlpips.scoring.folders import partners

__all__ = ["Measured", "cached_metric", "distance", "measure_all", "measure_pairs", "of_one_size", "partners"]
