"""A metric as a classifier, so that the attacks of other libraries can run against it."""

import torch
from torch import Tensor, nn

from rlpips.attacks.metrics import Metric
from rlpips.attacks.objectives import RankFlip


class TripletClassifier(nn.Module):
    """A metric with its triplets as a classifier of two classes, for the attacks of other libraries.

    It takes images `(N, C, H, W)` in [0, 1], which replace those that `perturb` names. It returns the logits
    `(d1, d0)`, `(N, 2)`: class 0 says that `x0` is closer to the reference. An image belongs to the triplet
    with the nearest unperturbed image, so libraries may pass any part of the batch in any order.

    Args:
        metric: the metric, on images in [-1, 1].
        ref: references `(N, 3, H, W)` in [-1, 1].
        x0: the first distorted images.
        x1: the second distorted images.
        judge: share of people who chose `x1`, N values in any shape.
        perturb: 'x0', 'x1', 'ref', or 'x0+x1', which takes both in one tensor `(N, 6, H, W)`.

    Attributes:
        images: the unperturbed images, in [0, 1], from which attacks start.
        labels: the right classes, `(N,)`, int64.
    """

    images: Tensor
    labels: Tensor

    def __init__(
        self, metric: Metric, ref: Tensor, x0: Tensor, x1: Tensor, judge: Tensor, perturb: str = "x0"
    ) -> None:
        super().__init__()
        self._objective = RankFlip(metric, ref, x0, x1, judge, perturb)
        self.register_buffer("images", (self._objective.x.flatten(1, -3) + 1) / 2)
        self.register_buffer("labels", (judge.flatten() >= 0.5).long())

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `(N, 2)`."""
        with torch.no_grad():
            index = torch.cdist(x.detach().flatten(1), self.images.flatten(1)).argmin(dim=1)
        d0, d1 = self._objective.distances((2 * x - 1).reshape(-1, *self._objective.x.shape[1:]), index)
        return torch.stack([d1, d0], dim=1)
