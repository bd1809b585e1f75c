"""Metrics of other packages, for `rlpips evaluate --weights benchmarks.peers:NAME`."""

import contextlib
import io
import warnings

import torch


def stlpips_alex() -> torch.nn.Module:
    """ST-LPIPS with AlexNet (Ghildyal & Liu 2022): `pip install stlpips_pytorch ipython torchsummary`."""
    return _stlpips("alex")


def stlpips_vgg() -> torch.nn.Module:
    """ST-LPIPS with VGG16."""
    return _stlpips("vgg")


def _stlpips(net: str) -> torch.nn.Module:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from stlpips_pytorch import stlpips

        metric: torch.nn.Module = stlpips.LPIPS(net=net, variant="shift_tolerant")
    return metric
