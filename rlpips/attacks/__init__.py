"""Attacks on metrics: searches for small changes of an image, and the objectives that they increase."""

from rlpips.attacks.apgd import APGD
from rlpips.attacks.base import Attack
from rlpips.attacks.classifier import TripletClassifier
from rlpips.attacks.objectives import Deflate, FeatureMSE, Inflate, Objective, RankFlip, SemanticSimilarity
from rlpips.attacks.parse import parse_attack, parse_attacks
from rlpips.attacks.pgd import PGD
from rlpips.attacks.ssa import SSA
from rlpips.attacks.stadv import StAdv

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
    "parse_attacks",
]
