"""Attacks on metrics: searches for small changes of an image, and the objectives that they climb."""

from rlpips.attacks.objectives import Deflate, FeatureMSE, Inflate, Objective, RankFlip, SemanticSimilarity
from rlpips.attacks.searches import APGD, PGD, SSA, Attack, StAdv, TripletClassifier, parse_attack

__all__ = [
    "APGD",
    "PGD",
    "SSA",
    "Attack",
    "Deflate",
    "FeatureMSE",
    "Inflate",
    "Objective",
    "RankFlip",
    "SemanticSimilarity",
    "StAdv",
    "TripletClassifier",
    "parse_attack",
]
