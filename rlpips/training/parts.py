"""The parts that make a metric harder to fool than LPIPS: floors, and layers of pixels."""

import itertools

import torch
from torch import Tensor, nn

from rlpips.backbones.pixels import CHANNELS, PixelFeatures
from rlpips.metric.heads import NetLinLayer
from rlpips.metric.lpips import LPIPS


@torch.no_grad()
def add_parts(metric: LPIPS, scales: int, floors: float, ref: Tensor, distorted: Tensor) -> None:
    """Give a metric layers of pixels and floors, or those that it lacks of them.

    The layers of pixels together contribute as much to distances as those of the backbone, and all heads are
    scaled so that distances keep their size: the median ratio of new and old distances is 1.

    Args:
        metric: the metric.
        scales: the number of layers of pixels; see `rlpips.backbones.pixels`.
        floors: the floor of each layer, as a multiple of the mean length of its features. 0 adds none.
        ref: images `(N, 3, H, W)` in [-1, 1].
        distorted: their distorted versions.

    Raises:
        ValueError: the metric has another number of layers of pixels, or the images are too small for them.
    """
    present = 0 if metric.pixels is None else metric.pixels.scales
    if present and scales not in (0, present):
        raise ValueError(f"pixels={scales}, but the weights to start from have {present} layers of pixels")
    if (present or not scales) and (metric.floors is not None or not floors):
        return
    training = metric.training
    metric.eval()
    before = metric(distorted, ref)
    own = metric.L - present
    if not present and scales:
        _add_pixels(metric, scales)
    if metric.floors is None and floors:
        lengths = [length.mean() for length in metric.reference(ref).lengths]
        metric.floors = nn.Parameter(floors * torch.stack(lengths).float(), requires_grad=False)
    after, shares = metric(distorted, ref, retPerLayer=True)
    if not present and scales:
        medians = [share.median() for share in shares]
        for lin, median in itertools.islice(zip(metric.lins, medians, strict=True), own, None):
            lin.channel_weights.mul_(sum(medians[:own]) / (scales * median))  # type: ignore[operator]
        after = metric(distorted, ref)
    for lin in metric.lins:
        lin.channel_weights.mul_((before / after).nanmedian())  # type: ignore[operator]
    metric.train(training)


def _add_pixels(metric: LPIPS, scales: int) -> None:
    like = metric.lins[0].channel_weights
    assert isinstance(like, Tensor)
    dropout = any(isinstance(module, nn.Dropout) for module in metric.lins[0].modules())
    metric.pixels = PixelFeatures(scales).to(like)
    for _ in range(scales):
        lin = NetLinLayer(CHANNELS, use_dropout=dropout).to(like)
        nn.init.constant_(lin.channel_weights, 1 / CHANNELS)
        lin.requires_grad_(like.requires_grad)
        metric.add_module(f"lin{metric.L}", lin)
        metric.lins.append(lin)
        metric.chns.append(CHANNELS)
        metric.L += 1
