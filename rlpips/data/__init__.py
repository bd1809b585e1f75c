"""Human judgements on disk, triplets made from photos, and distortions."""

from rlpips.data.bapps import download
from rlpips.data.distortions import DISTORTIONS, Distortion, combine
from rlpips.data.judgement_tables import MOS, TwoAFCTable
from rlpips.data.judgements import JND, TwoAFC, collate
from rlpips.data.resized import Judgements, Resized
from rlpips.data.triplets import PhotoTriplets, TripletsMade, make_triplets

__all__ = [
    "DISTORTIONS",
    "JND",
    "MOS",
    "Distortion",
    "Judgements",
    "PhotoTriplets",
    "Resized",
    "TripletsMade",
    "TwoAFC",
    "TwoAFCTable",
    "collate",
    "combine",
    "download",
    "make_triplets",
]
