"""How two distances become a prediction of which image people choose: LPIPS' network, or their ratio."""

import torch
from torch import Tensor, nn

_SHARPNESS = 4.0  # of the ranking by ratio: the logit where one distance is e times the other
_SMALLEST = 1e-6  # smaller distances count as this in logarithms


class Dist2LogitLayer(nn.Module):
    """LPIPS' ranking network: predicts from two distances how many people choose the second image.

    `forward(d0, d1)` takes two distances `(N, 1, H, W)` and returns the same shape: the share in [0, 1] of
    people who choose the image of `d1`, or its logit with `use_sigmoid=False`.
    """

    def __init__(self, chn_mid: int = 32, use_sigmoid: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(5, chn_mid, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(chn_mid, chn_mid, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(chn_mid, 1, 1),
        ]
        if use_sigmoid:
            layers.append(nn.Sigmoid())
        self.model = nn.Sequential(*layers)

    def forward(self, d0: Tensor, d1: Tensor, eps: float = 0.1) -> Tensor:
        """Compare two distances; `eps` keeps their ratios finite."""
        features = torch.cat([d0, d1, d0 - d1, d0 / (d1 + eps), d1 / (d0 + eps)], dim=1)
        out: Tensor = self.model(features)
        return out


def ranking_logits(network: nn.Module | None, d0: Tensor, d1: Tensor) -> Tensor:
    """Predict how many people choose the second image.

    Args:
        network: a ranking network that returns logits. Without one, the logit is `4 log(d0 / d1)`.
        d0: distances `(N,)` of the first images to their references.
        d1: distances of the second images.

    Returns:
        Logits `(N,)` of the share of people who choose the second image.
    """
    if network is None:
        return _SHARPNESS * (log_distance(d0) - log_distance(d1))
    logits: Tensor = network(d0.view(-1, 1, 1, 1), d1.view(-1, 1, 1, 1))
    return logits.flatten()


def log_distance(d: Tensor) -> Tensor:
    """Return the natural logarithm of distances, of which those below 1e-6 count as 1e-6."""
    return d.clamp(min=_SMALLEST).log()
