"""How well metrics agree with people, how far attacks move their distances, and what no attack can do."""

from rlpips.evaluation.certify import Certified, CertifiedBounds, CertifiedDecision
from rlpips.evaluation.certify_figure import certified_curve
from rlpips.evaluation.certify_measurement import CertifiedTriplets, measure_certified
from rlpips.evaluation.figures import agreement, histograms, margins
from rlpips.evaluation.judgement_measurement import measure_2afc, measure_jnd
from rlpips.evaluation.logistic import Logistic, fit_logistic
from rlpips.evaluation.mos_figure import scatter
from rlpips.evaluation.mos_measurement import measure_mos
from rlpips.evaluation.result_cache import ResultCache
from rlpips.evaluation.robustness_measurement import robustness
from rlpips.evaluation.robustness_report import RobustnessReport
from rlpips.evaluation.score_correlations import correlations
from rlpips.evaluation.scores import (
    Score,
    accuracy,
    bootstrap,
    disagreement,
    jnd_score,
    margin,
    mean_of,
    two_afc_score,
)
from rlpips.evaluation.worst_examples import WorstImages

__all__ = [
    "Certified",
    "CertifiedBounds",
    "CertifiedDecision",
    "CertifiedTriplets",
    "Logistic",
    "ResultCache",
    "RobustnessReport",
    "Score",
    "WorstImages",
    "accuracy",
    "agreement",
    "bootstrap",
    "certified_curve",
    "correlations",
    "disagreement",
    "fit_logistic",
    "histograms",
    "jnd_score",
    "margin",
    "margins",
    "mean_of",
    "measure_2afc",
    "measure_certified",
    "measure_jnd",
    "measure_mos",
    "robustness",
    "scatter",
    "two_afc_score",
]
