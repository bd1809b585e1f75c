"""All pairs, nearest neighbours, and embeddings whose squared distances are the metric."""

from rlpips.pairwise.embeddings import Images, Projection, cdist, embed, nearest, pdist

__all__ = ["Images", "Projection", "cdist", "embed", "nearest", "pdist"]
