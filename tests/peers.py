"""The real `lpips` beside ours, the difference between the two, and images to feed them."""

import contextlib
import functools
import io
import warnings
from pathlib import Path

import lpips
import torch

import rlpips


@contextlib.contextmanager
def hushed():
    """Swallow what `lpips` prints and torchvision warns of."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def _peers(net, dtype):
    with hushed():
        theirs = lpips.LPIPS(net=net, pnet_rand=True)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for (
            parameter
        ) in theirs.net.parameters():  # He initialisation keeps activations of one size with depth
            fan_in = parameter[0].numel()
            std = (2 / fan_in) ** 0.5 if parameter.ndim == 4 else 0.05
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    ours = rlpips.LPIPS(net=net, pnet_rand=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.to(dtype), theirs.to(dtype)


def published(net="alex", version="0.1"):
    """Return the file of the heads that the wheel of `lpips` holds."""
    return Path(lpips.__file__).parent / "weights" / f"v{version}" / f"{net}.pth"


def peers(net, dtype=torch.float32, version="0.1", heads=True, spatial=False):
    """Return our metric and that of `lpips` with the same seeded random backbone and the same settings."""
    ours, theirs = _peers(net, dtype)
    heads_of = torch.load(published(net, version), map_location="cpu", weights_only=True)
    for metric in (ours, theirs):
        metric.version, metric.spatial, metric.lpips = version, spatial, heads
        for k, lin in enumerate(metric.lins):
            lin.model[-1].weight.data.copy_(heads_of[f"lin{k}.model.1.weight"])
    return ours, theirs


WORST = {}


def difference(ours, theirs):
    """Return the largest difference, relative where values exceed 1, and remember it for the summary."""
    scale = theirs.abs().clamp(min=1)
    worst = ((ours - theirs).abs() / scale).max().item()
    WORST[ours.dtype] = max(WORST.get(ours.dtype, 0.0), worst)
    return worst


def images(*shape, seed=0, dtype=torch.float32):
    """Return seeded random images in [-1, 1], smooth enough to be unlike pure noise."""
    generator = torch.Generator().manual_seed(seed)
    *batch, height, width = shape
    coarse = torch.rand(*batch, max(1, height // 8), max(1, width // 8), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    noise = torch.rand(*shape, generator=generator)
    return (1.4 * smooth + 0.6 * noise - 1).to(dtype)
