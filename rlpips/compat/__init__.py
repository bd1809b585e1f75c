"""The names that only the `lpips` package has."""

from rlpips.compat.arrays import (
    dssim,
    im2tensor,
    l2,
    np2tensor,
    psnr,
    rgb2lab,
    tensor2im,
    tensor2np,
    tensor2tensorlab,
    tensor2vec,
    tensorlab2tensor,
)
from rlpips.compat.modules import DSSIM, L2, BCERankingLoss, FakeNet, print_network
from rlpips.compat.scores import score_2afc_dataset, score_jnd_dataset
from rlpips.compat.trainer import Trainer
from rlpips.evaluation.scores import voc_ap
from rlpips.training.ranking import Dist2LogitLayer

__all__ = [
    "DSSIM", "L2", "BCERankingLoss", "Dist2LogitLayer", "FakeNet", "Trainer", "dssim", "im2tensor", "l2",
    "np2tensor", "print_network", "psnr", "rgb2lab", "score_2afc_dataset", "score_jnd_dataset", "tensor2im",
    "tensor2np", "tensor2tensorlab", "tensor2vec", "tensorlab2tensor", "voc_ap",
]  # fmt: skip
