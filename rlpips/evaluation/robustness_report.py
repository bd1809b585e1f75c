"""The report of `rlpips.evaluation.robustness`: distances, inflation, JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rlpips.evaluation.image_changes import STRENGTH
from rlpips.evaluation.report_json import finite_or_none, report_header, worst_of_settings

Distances = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RobustnessReport:
    """Distances between images and changed versions of them, under several metrics.

    Attributes:
        images: the names of the N images.
        skipped: for each file that was left out, the reason.
        size: side of the square crops, in pixels.
        seed: of augmentations and distortions. Each attack has its own.
        metrics: for each metric the digest of its tensors, None if it is not a module.
        attacks: for each attack its class and settings; for the strongest of several attacks, their names.
        attacked: `attacked[source, attack][metric]` are distances `(N,)` by `metric` between the images and
            the versions that the attack on `source` made of them.
        augmented: for each metric the distances `(2 * N,)` to a view of each image by the first of BYOL's two
            sets of augmentations, then to one by the second.
        distorted: `distorted[metric][distortion]` are distances `(N,)`.
        worst: for each source and attack the images that moved farthest, with their distances by the source.
        undefined: for each metric that gave NaN, a sentence that names the first such image. These distances
            are NaN here. So are all distances to an attacked version that could not be made because of it.
    """

    images: list[str]
    skipped: dict[str, str]
    size: int
    seed: int
    metrics: dict[str, str | None]
    attacks: dict[str, dict[str, Any]]
    attacked: dict[tuple[str, str], dict[str, Distances]]
    augmented: dict[str, Distances]
    distorted: dict[str, dict[str, Distances]]
    worst: dict[tuple[str, str], list[tuple[str, float]]]
    undefined: dict[str, str] = field(default_factory=dict)

    def ordinary(self, metric: str) -> Distances:
        """Return the distances of all ordinary distortions together."""
        return np.concatenate(list(self.distorted[metric].values()))

    def inflation(self, metric: str, attack: str, source: str | None = None) -> float:
        """Return the median attacked distance divided by the median distance of ordinary distortions.

        Args:
            metric: what measures both.
            attack: an attack's name.
            source: the metric that was attacked, by default `metric` itself.
        """
        attacked = float(np.median(self.attacked[source or metric, attack][metric]))
        ordinary = float(np.median(self.ordinary(metric)))
        return math.inf if ordinary == 0 else attacked / ordinary

    def with_worst_of(self, groups: Mapping[str, Sequence[str]]) -> "RobustnessReport":
        """Return a report with further attacks, each the strongest for each image of attacks that were made.

        Args:
            groups: for each new name the names of these attacks. Its distances are their largest, image by
                image.
        """
        attacked: dict[tuple[str, str], dict[str, Distances]] = {}
        for source in self.metrics:
            attacked |= {(source, attack): self.attacked[source, attack] for attack in self.attacks}
            for name, attacks in groups.items():
                attacked[source, name] = {
                    metric: np.max([self.attacked[source, attack][metric] for attack in attacks], axis=0)
                    for metric in self.metrics
                }
        settings = {name: worst_of_settings(attacks) for name, attacks in groups.items()}
        return replace(self, attacks={**self.attacks, **settings}, attacked=attacked)

    def to_json(self) -> dict[str, Any]:
        """Return the report as lists, dicts and numbers for `json.dumps`, with None for NaN and infinity."""
        settings = {"size": self.size, "strength": STRENGTH, "attacks": self.attacks}
        return {
            **report_header(self.seed, self.metrics, settings),
            "images": self.images,
            "skipped": self.skipped,
            "undefined": self.undefined,
            "metrics": {
                metric: {
                    "ordinary_median": _number(np.median(self.ordinary(metric))),
                    "augmented_median": _number(np.median(self.augmented[metric])),
                    "augmented": _numbers(self.augmented[metric]),
                    "distorted": {name: _numbers(found) for name, found in self.distorted[metric].items()},
                }
                for metric in self.metrics
            },
            "attacked": [
                {
                    "source": source,
                    "attack": attack,
                    "metric": metric,
                    "median": _number(np.median(found)),
                    "inflation": _number(self.inflation(metric, attack, source)),
                    "distances": _numbers(found),
                }
                for (source, attack), by_metric in self.attacked.items()
                for metric, found in by_metric.items()
            ],
            "worst": [
                {
                    "source": source,
                    "attack": attack,
                    "examples": [{"image": name, "distance": _number(value)} for name, value in examples],
                }
                for (source, attack), examples in self.worst.items()
            ],
        }


def _number(value: Any) -> float | None:
    number: float | None = finite_or_none(float(value))
    return number


def _numbers(values: Distances) -> list[float | None]:
    return [_number(value) for value in values]
