"""Distances of files, arrays and tensors: one pair, many pairs, folders."""

from rlpips.scoring.folders import partners
from rlpips.scoring.many_pairs import Measured, measure_all, measure_pairs
from rlpips.scoring.metric_cache import cached_metric
from rlpips.scoring.one_pair import distance, load_pair

__all__ = ["Measured", "cached_metric", "distance", "load_pair", "measure_all", "measure_pairs", "partners"]
