"""LPIPS and R-LPIPS, the perceptual image distances, as one drop-in PyTorch module."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlpips import functional as functional
    from rlpips import pairwise as pairwise
    from rlpips import plots as plots
    from rlpips import torchmetrics as torchmetrics
    from rlpips.compat import (
        DSSIM,
        L2,
        BCERankingLoss,
        Dist2LogitLayer,
        FakeNet,
        dssim,
        im2tensor,
        l2,
        np2tensor,
        print_network,
        psnr,
        rgb2lab,
        tensor2im,
        tensor2np,
        tensor2tensorlab,
        tensor2vec,
        tensorlab2tensor,
        voc_ap,
    )
    from rlpips.datasets import JND, TwoAFC
    from rlpips.errors import (
        CheckpointError,
        DatasetError,
        ImageError,
        MissingExtraError,
        UndefinedDistanceError,
        WeightsUnavailableError,
    )
    from rlpips.evaluation import score_2afc_dataset, score_jnd_dataset
    from rlpips.export import export_metric
    from rlpips.images import load_image
    from rlpips.measure import distance
    from rlpips.metric import LPIPS, NetLinLayer, ScalingLayer, normalize_tensor, spatial_average, upsample
    from rlpips.registry import WeightsEntry, list_weights
    from rlpips.trainer import Trainer
    from rlpips.triplets import make_triplets

__version__ = "0.1.0"

# Public names and the modules they come from. They are imported on first use (PEP 562), so that
# `import rlpips` costs nothing and `rlpips --help` needs no torch.
_SOURCES = {
    "compat": (
        "BCERankingLoss", "DSSIM", "Dist2LogitLayer", "FakeNet", "L2", "dssim", "im2tensor", "l2",
        "np2tensor", "print_network", "psnr", "rgb2lab", "tensor2im", "tensor2np", "tensor2tensorlab",
        "tensor2vec", "tensorlab2tensor", "voc_ap",
    ),
    "datasets": ("JND", "TwoAFC"),
    "errors": (
        "CheckpointError", "DatasetError", "ImageError", "MissingExtraError",
        "UndefinedDistanceError", "WeightsUnavailableError",
    ),
    "evaluation": ("score_2afc_dataset", "score_jnd_dataset"),
    "export": ("export_metric",),
    "images": ("load_image",),
    "measure": ("distance",),
    "metric": ("LPIPS", "NetLinLayer", "ScalingLayer", "normalize_tensor", "spatial_average", "upsample"),
    "registry": ("WeightsEntry", "list_weights"),
    "trainer": ("Trainer",),
    "triplets": ("make_triplets",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _SOURCES.items() for name in names}

# Modules that are used by their own name: `rlpips.functional.lpips` after `import rlpips`.
_MODULES = ("functional", "pairwise", "plots", "torchmetrics")

__all__ = [
    "DSSIM",
    "JND",
    "L2",
    "LPIPS",
    "BCERankingLoss",
    "CheckpointError",
    "DatasetError",
    "Dist2LogitLayer",
    "FakeNet",
    "ImageError",
    "MissingExtraError",
    "NetLinLayer",
    "ScalingLayer",
    "Trainer",
    "TwoAFC",
    "UndefinedDistanceError",
    "WeightsEntry",
    "WeightsUnavailableError",
    "__version__",
    "distance",
    "dssim",
    "export_metric",
    "im2tensor",
    "l2",
    "list_weights",
    "load_image",
    "make_triplets",
    "normalize_tensor",
    "np2tensor",
    "print_network",
    "psnr",
    "rgb2lab",
    "score_2afc_dataset",
    "score_jnd_dataset",
    "spatial_average",
    "tensor2im",
    "tensor2np",
    "tensor2tensorlab",
    "tensor2vec",
    "tensorlab2tensor",
    "upsample",
    "voc_ap",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"rlpips.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'rlpips' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"rlpips.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
