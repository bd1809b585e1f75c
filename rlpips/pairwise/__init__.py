"""Distances among many images: embeddings, all pairs, nearest neighbours."""

from rlpips.pairwise.all_pairs import cdist, pdist
from rlpips.pairwise.embeddings import Images, embed
from rlpips.pairwise.projection import Projection
from rlpips.pairwise.search import nearest

__all__ = ["Images", "Projection", "cdist", "embed", "nearest", "pdist"]
