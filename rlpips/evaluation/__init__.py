"""How well metrics agree with people, and how far attacks move their distances."""

from rlpips.evaluation.figures import agreement, histograms, margins
from rlpips.evaluation.judgement_measurement import measure_2afc, measure_jnd
from rlpips.evaluation.result_cache import ResultCache
from rlpips.evaluation.robustness_measurement import robustness
from rlpips.evaluation.robustness_report import RobustnessReport
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
    "ResultCache",
    "RobustnessReport",
    "Score",
    "WorstImages",
    "accuracy",
    "agreement",
    "bootstrap",
    "disagreement",
    "histograms",
    "jnd_score",
    "margin",
    "margins",
    "mean_of",
    "measure_2afc",
    "measure_jnd",
    "robustness",
    "two_afc_score",
]
