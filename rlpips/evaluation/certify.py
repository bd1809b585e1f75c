"""Certificates: what noise says of a metric's decisions and distances for every small change of an image.

Attacks show only that they themselves failed. A certificate holds for every change up to a radius. It is
about the smoothed metric, which looks at many noisy versions of an image, and not about the metric itself.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rlpips.attacks.metrics import Metric, metric_name
from rlpips.attacks.random_streams import RandomStreams
from rlpips.errors import UndefinedDistanceError
from rlpips.evaluation.certify_binomial import lower_confidence_bound, lower_order_statistic
from rlpips.evaluation.certify_noise import noisy_distances
from rlpips.evaluation.scores import Array
from rlpips.metric.inputs import as_batch

PERTURB_TRIPLET = ("ref", "x0", "x1", "all")
"""What a certificate of a decision may let change."""
PERTURB_PAIR = ("x", "y", "both")
"""What a certificate of a distance may let change."""


class CertifiedDecision(NamedTuple):
    """Which of two images is nearer to a third, for each of N triplets, whatever small change is made.

    Attributes:
        nearer: 0 if `x0` is nearer, 1 if `x1` is, `(N,)`, int64.
        radius: for every change shorter than this the answer is the same, `(N,)`, float64. The length is the
            l2 norm on the [0, 1] scale.
        abstained: nothing is known, and the radius is 0, `(N,)`, bool.
        votes: how many of the `n` noisy versions gave this answer, `(N,)`, int64.
    """

    nearer: npt.NDArray[np.int64]
    radius: Array
    abstained: npt.NDArray[np.bool_]
    votes: npt.NDArray[np.int64]


class CertifiedBounds(NamedTuple):
    """An interval around the smoothed distance of each of N pairs, whatever small change is made.

    Attributes:
        low: no change makes the smoothed distance smaller than this, `(N,)`, float64; -inf if nothing is
            known.
        median: the median distance of the noisy versions, which estimates the smoothed distance, `(N,)`.
        high: no change makes the smoothed distance larger than this, `(N,)`; inf if nothing is known.
    """

    low: Array
    median: Array
    high: Array


@dataclass(frozen=True, eq=False)
class Certified:
    """A metric smoothed by Gaussian noise, whose decisions and distances come with a certificate.

    The smoothed decision on a triplet is what the metric says of most noisy versions (Cohen et al. 2019,
    arXiv 1902.02918). The smoothed distance is the median over noisy versions (Chiang et al. 2020, arXiv
    2007.03730). Both are estimated from `n` draws. A certificate is wrong with probability at most `alpha`,
    which is about unlucky draws; changes and attacks have no influence on it.

    Noisy images are not clipped. Each image has random draws of its own, so results do not depend on the
    batch size.

    Args:
        metric: any callable of two batches in [-1, 1] that returns N distances. With a method `reference`,
            as `rlpips.LPIPS` has it, an image without noise runs through the backbone only once.
        sigma: standard deviation of the noise, on the [0, 1] scale. More noise certifies larger radii, but
            the smoothed metric sees less.
        n: draws that estimate. Their number limits the radius, see `largest_radius`.
        n0: further draws, which choose the answer that is then certified.
        alpha: how often a certificate may be wrong.
        seed: of the draws.
        batch_size: how many noisy images run at once.

    Raises:
        ValueError: an argument is out of its range.
    """

    metric: Metric
    sigma: float
    n: int = field(default=1000, kw_only=True)
    n0: int = field(default=100, kw_only=True)
    alpha: float = field(default=0.001, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    batch_size: int = field(default=32, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma must be positive, on the [0, 1] scale such as 0.12, got {self.sigma}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is a probability between 0 and 1, such as 0.001, got {self.alpha}")
        for name in ("n", "n0", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")

    @property
    def largest_radius(self) -> float:
        """The largest radius that `decide` can certify: that of a decision on which all `n` draws agree."""
        return self._radius(self.n)

    def decide(
        self,
        ref: Tensor,
        x0: Tensor,
        x1: Tensor,
        perturb: str = "ref",
        image_ids: Sequence[int] | None = None,
    ) -> CertifiedDecision:
        """Decide for each triplet which of two images is nearer to the reference, and certify the decision.

        `n0` draws choose the answer. Of `n` others, the share that gives this answer has a lower confidence
        bound p (Clopper and Pearson), and the radius is `sigma * quantile(p)`, with the quantiles of the
        normal distribution. If p is at most 1/2, the decision abstains.

        Args:
            ref: references `(N, 3, H, W)` in [-1, 1], on the metric's device.
            x0: the first images to compare.
            x1: the second images.
            perturb: the image that carries noise, and may change: 'ref', 'x0', 'x1', or 'all' three. Then
                the radius is for the length of all changes together, the root of the sum of their squares.
            image_ids: a number for each triplet, which gives it its draws; by default its position.

        Raises:
            UndefinedDistanceError: the metric gives NaN.
            ValueError: `perturb` is none of the four, or the shapes differ.
        """
        noisy = _noisy(perturb, PERTURB_TRIPLET)
        pairs = [("x0", "ref"), ("x1", "ref")]
        nearer, votes, radius = [], [], []
        images = {"ref": ref, "x0": x0, "x1": x1}
        for d in self._draws(images, pairs, noisy, self.n0 + self.n, image_ids):
            says_x1 = d[:, 1] < d[:, 0]
            answer = says_x1[: self.n0].mean() > 0.5
            nearer.append(int(answer))
            votes.append(int((says_x1[self.n0 :] == answer).sum()))
            radius.append(self._radius(votes[-1]))
        radii = np.array(radius, dtype=np.float64)
        return CertifiedDecision(
            np.array(nearer, dtype=np.int64), radii, radii == 0, np.array(votes, dtype=np.int64)
        )

    def bounds(
        self,
        x: Tensor,
        y: Tensor,
        radius: float,
        perturb: str = "x",
        image_ids: Sequence[int] | None = None,
    ) -> CertifiedBounds:
        """Bound the smoothed distance of each pair for every change up to a length.

        The smoothed distance, a median, can move at most to the quantiles `cdf(-radius / sigma)` and
        `cdf(radius / sigma)` of the distances that noise gives here, with `cdf` of the normal distribution.
        Sorted draws bound these quantiles, each with confidence `1 - alpha / 2`. If `radius` is too large for
        `n` draws, the bounds are -inf and inf. At n=1000 and alpha=0.001 this is beyond 2.4 times `sigma`.

        Args:
            x: images `(N, 3, H, W)` in [-1, 1], on the metric's device.
            y: as many images of the same size.
            radius: l2 length of the largest change, on the [0, 1] scale. 0 gives a confidence interval of
                the smoothed distance.
            perturb: the image that carries noise, and may change: 'x', 'y', or 'both'. Then the radius is for
                the length of both changes together, the root of the sum of their squares.
            image_ids: a number for each pair, which gives it its draws; by default its position.

        Raises:
            UndefinedDistanceError: the metric gives NaN.
            ValueError: `perturb` is none of the three, the radius is negative, or the shapes differ.
        """
        if not 0 <= radius < math.inf:
            raise ValueError(f"radius must be a length, 0 or more, on the [0, 1] scale, got {radius}")
        noisy = _noisy(perturb, PERTURB_PAIR)
        place = lower_order_statistic(self.n, NormalDist().cdf(-radius / self.sigma), self.alpha / 2)
        found = []
        for d in self._draws({"x": x, "y": y}, [("x", "y")], noisy, self.n, image_ids):
            ordered = np.concatenate([[-math.inf], np.sort(d[:, 0]), [math.inf]])
            # The draws are as likely to be above the upper quantile as below the lower one.
            found.append((ordered[place], np.median(d), ordered[self.n + 1 - place]))
        low, median, high = np.array(found, dtype=np.float64).reshape(-1, 3).T
        return CertifiedBounds(low, median, high)

    def _radius(self, votes: int) -> float:
        """Return the radius of a decision for which so many of the `n` draws voted; 0 if it abstains."""
        share = lower_confidence_bound(votes, self.n, self.alpha)
        return self.sigma * NormalDist().inv_cdf(share) if share > 0.5 else 0.0

    def _draws(
        self,
        images: dict[str, Tensor],
        pairs: list[tuple[str, str]],
        noisy: tuple[str, ...],
        count: int,
        image_ids: Sequence[int] | None,
    ) -> Iterator[Array]:
        """Yield for each example the distances of its pairs under noise, `(count, len(pairs))`."""
        batches = {name: as_batch(image) for name, image in images.items()}
        shapes = {name: tuple(batch.shape) for name, batch in batches.items()}
        if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 4:
            listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise ValueError(f"the images must have one shape, (N, 3, H, W), got {listed}")
        total = len(next(iter(batches.values())))
        ids = range(total) if image_ids is None else image_ids
        if len(ids) != total:
            raise ValueError(f"image_ids has {len(ids)} numbers for {total} examples")
        for i, image_id in enumerate(ids):
            measured = noisy_distances(
                self.metric,
                {name: batch[i : i + 1] for name, batch in batches.items()},
                pairs,
                noisy,
                self.sigma,
                count,
                RandomStreams(self.seed, [image_id]),
                self.batch_size,
            )
            if np.isnan(measured).any():
                raise UndefinedDistanceError(
                    f"{metric_name(self.metric)} gives NaN for a noisy version of image {image_id}", image_id
                )
            yield measured


def _noisy(perturb: str, choices: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the images that carry noise. The last choice means all the others."""
    if perturb not in choices:
        raise ValueError(f"perturb={perturb!r} is unknown; choose {', '.join(choices)}")
    return choices[:-1] if perturb == choices[-1] else (perturb,)
