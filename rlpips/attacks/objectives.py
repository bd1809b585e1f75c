"""What an attack on a metric pursues: a value per image, which it makes as large as its budget allows."""

from typing import Any

import torch
from torch import Tensor

from rlpips.attacks.metrics import Metric, distances, metric_name, precompute

PERTURB = ("x0", "x1", "ref", "x0+x1")
"""What an attacker of a triplet may change."""


class Objective:
    """A value for each image of a batch, which an attack increases; above `goal`, an image is finished.

    `objective(x, index)` takes candidates for the images numbered `index` and returns `(len(index),)`. The
    value of an image must not depend on the other images.
    """

    goal: float = float("inf")

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the values of candidates `x` for the images numbered `index`."""
        raise NotImplementedError


def _brief(objective: Objective, metric: Any, **held: Any) -> str:
    """Describe an objective by what it holds, in one line."""
    text = repr(metric)
    if text.startswith("<") or "\n" in text:
        text = metric_name(metric)
    listed = ", ".join(f"{name}={value}" for name, value in held.items())
    return f"{type(objective).__name__}({text}, {listed})"


class RankFlip(Objective):
    """Make a metric prefer the other image of a triplet than people do (2AFC).

    The value is `d_chosen - d_other`, where `d_chosen` is the distance of the image that most people chose.
    Above 0 the judgement is broken.

    Args:
        metric: the metric under attack.
        ref: references `(N, 3, H, W)`.
        x0: the first distorted images.
        x1: the second.
        judge: share of people who chose `x1`, N values in any shape; below 0.5, `x0` is the right answer.
        perturb: what the attacker changes: 'x0', 'x1', 'ref', or 'x0+x1', each of both within the budget.
        other: images that `SSA` pulls towards; by default the references of the next triplets in the batch.

    Attributes:
        x: what an attack starts from, `(N, 3, H, W)`, or `(N, 2, 3, H, W)` for 'x0+x1'.
        x0_is_right: mask of the triplets whose `x0` most people chose.

    Raises:
        ValueError: `perturb` is none of these; a judgement is NaN.
    """

    goal = 0.0

    def __init__(
        self,
        metric: Metric,
        ref: Tensor,
        x0: Tensor,
        x1: Tensor,
        judge: Tensor,
        perturb: str = "x0",
        other: Tensor | None = None,
    ) -> None:
        if perturb not in PERTURB:
            raise ValueError(f"perturb={perturb!r} is unknown; choose {', '.join(PERTURB)}")
        undecided = judge.flatten().isnan()
        if undecided.any():
            raise ValueError(f"judge[{int(undecided.int().argmax())}] is NaN; give the share who chose x1")
        self.metric = metric
        self.perturb = perturb
        self.ref = ref
        self.other = ref.roll(-1, dims=0) if other is None else other
        self.x = {"x0": x0, "x1": x1, "ref": ref}[perturb] if perturb != "x0+x1" else torch.stack([x0, x1], 1)
        self.x0_is_right = judge.flatten().to(ref.device) < 0.5
        with torch.no_grad():
            images = {"x0": x0, "x1": x1, "ref": ref}
            self._fixed = {k: precompute(metric, v) for k, v in images.items() if k not in perturb.split("+")}
            self._distance = {
                k: distances(metric, self._fixed[k], self._fixed["ref"])
                for k in ("x0", "x1")
                if k in self._fixed and "ref" in self._fixed
            }

    def __repr__(self) -> str:
        return _brief(self, self.metric, ref=tuple(self.ref.shape), perturb=self.perturb)

    def distances(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distances of the first and the second image to the reference, each `(len(index),)`."""
        if self.perturb == "ref":
            moved = precompute(self.metric, x)
            d0, d1 = (distances(self.metric, self._fixed[k][index], moved) for k in ("x0", "x1"))
            return d0, d1
        candidates = dict(zip(self.perturb.split("+"), x.unbind(1) if x.ndim == 5 else (x,), strict=True))
        ref = self._fixed["ref"][index]
        d0, d1 = (
            distances(self.metric, candidates[k], ref) if k in candidates else self._distance[k][index]
            for k in ("x0", "x1")
        )
        return d0, d1

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Return by how much the judgement is broken."""
        d0, d1 = self.distances(x, index)
        return torch.where(self.x0_is_right[index], d0 - d1, d1 - d0)


class Inflate(Objective):
    """Push images as far as the budget allows from themselves, or from their references.

    Args:
        metric: the metric under attack.
        x: images `(N, 3, H, W)`, from which distances are measured.
        goal: a distance above which an image is finished; by default none is.
    """

    _sign = 1.0

    def __init__(self, metric: Metric, x: Tensor, goal: float = float("inf")) -> None:
        self.metric = metric
        self.goal = goal
        with torch.no_grad():
            self._anchor = precompute(metric, x)

    def __repr__(self) -> str:
        return _brief(self, self.metric, x=tuple(self._anchor.shape), goal=self.goal)

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the distances."""
        return self._sign * distances(self.metric, x, self._anchor[index])


class Deflate(Inflate):
    """Make images look near to others that are visibly different; the value is minus the distance."""

    _sign = -1.0


class FeatureMSE(Objective):
    """Push the activations of images away from those of `x`: mean squared differences, summed over layers.

    The histograms of the R-LPIPS paper attack this instead of the distance itself.

    Args:
        metric: a metric with a method `reference`, such as `rlpips.LPIPS`.
        x: images `(N, 3, H, W)`.
    """

    def __init__(self, metric: Any, x: Tensor) -> None:
        self.metric = metric
        with torch.no_grad():
            self._anchor = metric.reference(x).activations
        self._shape = tuple(x.shape)

    def __repr__(self) -> str:
        return _brief(self, self.metric, x=self._shape)

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the sums."""
        moved = self.metric.reference(x).activations
        layers = [
            (f - g[index]).square().flatten(1).mean(1) for f, g in zip(moved, self._anchor, strict=True)
        ]
        return torch.stack(layers).sum(dim=0)


class SemanticSimilarity(Objective):
    """Push images from their own references to unrelated ones, or back (Luo et al. 2022, CVPR).

    The value is the distance to the own reference minus that to the other one, or the negative of that where
    the attacked image is not the one that people chose.

    Args:
        triplets: what gives the metric, the references and the judgements, on 'x0' or 'x1'.
    """

    def __init__(self, triplets: RankFlip) -> None:
        self.metric = triplets.metric
        with torch.no_grad():
            self._ref = precompute(self.metric, triplets.ref)
            self._other = precompute(self.metric, triplets.other)
        away = triplets.x0_is_right == (triplets.perturb == "x0")
        self._sign = torch.where(away, 1.0, -1.0)

    def __repr__(self) -> str:
        return _brief(self, self.metric, ref=tuple(self._ref.shape))

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the differences."""
        moved = precompute(self.metric, x)
        own = distances(self.metric, moved, self._ref[index])
        return self._sign[index] * (own - distances(self.metric, moved, self._other[index]))
