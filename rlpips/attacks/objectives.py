"""Objectives: what an attack on a metric makes as large as its budget allows, one value per image."""

from typing import Any

import torch
from torch import Tensor

from rlpips.attacks.metrics import Metric, distances, metric_name, precompute

PERTURB = ("x0", "x1", "ref", "x0+x1")
"""What an attacker of a triplet may change."""


class Objective:
    """One value per image, which an attack increases.

    `objective(x, index)` takes candidates for the images `index` of the batch and returns their values,
    `(len(index),)`. The value of an image must not depend on the other images.

    Attributes:
        goal: an attack stops working on an image as soon as its value is above this.
    """

    goal: float = float("inf")

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the values of candidates `x` for the images `index` of the batch."""
        raise NotImplementedError


def _describe(objective: Objective, metric: Any, **arguments: Any) -> str:
    """Return the `repr` of an objective, in one line."""
    text = repr(metric)
    if text.startswith("<") or "\n" in text:
        text = metric_name(metric)
    listed = ", ".join(f"{name}={value}" for name, value in arguments.items())
    return f"{type(objective).__name__}({text}, {listed})"


class RankFlip(Objective):
    """Make a metric contradict people's judgement of a triplet (2AFC).

    The value is `d_chosen - d_other`, where `d_chosen` is the distance of the reference to the image that
    most people chose, and `d_other` that to the other image. Above 0 the metric ranks them the wrong way.

    Args:
        metric: the metric under attack.
        ref: references `(N, 3, H, W)`.
        x0: the first distorted images.
        x1: the second distorted images.
        judge: share of people who chose `x1`, N values in any shape. Below 0.5, `x0` is the right answer.
        perturb: what the attacker changes: 'x0', 'x1', 'ref' or 'x0+x1'. In the last case each of the two has
            the whole budget.
        other: unrelated images, which `SSA` uses. By default the references of the next triplets in the
            batch.

    Attributes:
        x: the images that an attack starts from, `(N, 3, H, W)`, or `(N, 2, 3, H, W)` for 'x0+x1'.
        x0_is_right: mask of the triplets whose `x0` most people chose.

    Raises:
        ValueError: `perturb` is none of the four, or a judgement is NaN.
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
        return _describe(self, self.metric, ref=tuple(self.ref.shape), perturb=self.perturb)

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
        """Return `d_chosen - d_other`, `(len(index),)`."""
        d0, d1 = self.distances(x, index)
        return torch.where(self.x0_is_right[index], d0 - d1, d1 - d0)


class Inflate(Objective):
    """Make the distance from images `x` as large as the budget allows.

    Start the attack from `x` itself to find images that look the same and are far away.

    Args:
        metric: the metric under attack.
        x: images `(N, 3, H, W)`, from which distances are measured.
        goal: an attack stops at a distance above this. By default it uses all its steps.
    """

    _sign = 1.0

    def __init__(self, metric: Metric, x: Tensor, goal: float = float("inf")) -> None:
        self.metric = metric
        self.goal = goal
        with torch.no_grad():
            self._anchor = precompute(metric, x)

    def __repr__(self) -> str:
        return _describe(self, self.metric, x=tuple(self._anchor.shape), goal=self.goal)

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the distance of each candidate to its image; for `Deflate`, minus the distance."""
        return self._sign * distances(self.metric, x, self._anchor[index])


class Deflate(Inflate):
    """Make the distance to images `x`, which look different, as small as the budget allows.

    The value is minus the distance. The arguments are those of `Inflate`.
    """

    _sign = -1.0


class FeatureMSE(Objective):
    """Push the activations of images away from those of `x`.

    The value is the mean squared difference of activations, summed over layers. The histograms in the R-LPIPS
    paper (arXiv 2307.15157) attack this instead of the distance itself.

    Args:
        metric: a metric with a method `reference`, such as `rlpips.LPIPS`.
        x: images `(N, 3, H, W)`.
    """

    def __init__(self, metric: Any, x: Tensor) -> None:
        self.metric = metric
        with torch.no_grad():
            self._anchor = metric.reference(x).unit_features
        self._shape = tuple(x.shape)

    def __repr__(self) -> str:
        return _describe(self, self.metric, x=self._shape)

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the mean squared differences, summed over layers."""
        moved = self.metric.reference(x).unit_features
        layers = [
            (f - g[index]).square().flatten(1).mean(1) for f, g in zip(moved, self._anchor, strict=True)
        ]
        return torch.stack(layers).sum(dim=0)


class SemanticSimilarity(Objective):
    """Push images away from their reference and towards an unrelated one (after Luo et al. 2022, CVPR).

    The value is the distance to the own reference minus the distance to the unrelated one. Where the attacked
    image is not the one that people chose, the value is the negative of this.

    Args:
        triplets: a `RankFlip` on 'x0' or 'x1'. It provides the metric, the references and the judgements.
    """

    def __init__(self, triplets: RankFlip) -> None:
        self.metric = triplets.metric
        with torch.no_grad():
            self._ref = precompute(self.metric, triplets.ref)
            self._other = precompute(self.metric, triplets.other)
        away = triplets.x0_is_right == (triplets.perturb == "x0")
        self._sign = torch.where(away, 1.0, -1.0)

    def __repr__(self) -> str:
        return _describe(self, self.metric, ref=tuple(self._ref.shape))

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the signed differences of the two distances."""
        moved = precompute(self.metric, x)
        own = distances(self.metric, moved, self._ref[index])
        return self._sign[index] * (own - distances(self.metric, moved, self._other[index]))
