"""Is a metric robust, or does it only hide its gradient? Other attacks, more steps, larger budgets.

The share of triplets judged right under the attacks of AutoAttack (white-box APGD and the black-box
Square), under attacks transferred from standard LPIPS, with more steps, and with larger budgets, which
must bring it to zero. With masked gradients a black-box attack would succeed more often than the white-
box ones, or the share would stay high at large budgets (Athalye et al. 2018, arXiv 1802.00420).
`benchmarks.robust` prints these.
"""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from rlpips.attacks import APGD, PGD, TripletClassifier
from rlpips.attacks.metrics import Metric
from rlpips.attacks.objectives import RankFlip

EPS = 4 / 255

Triplets = tuple[Tensor, Tensor, Tensor, Tensor]
"""References, two distorted versions, `(N, 3, H, W)`, and `judge`, `(N, 1, 1, 1)`."""


def share_right(metric: Metric, triplets: Triplets, perturb: str, attacked: Tensor) -> float:
    """Return the share of triplets that are judged as `judge` says, given attacked images `(N, 3, H, W)`."""
    objective = RankFlip(metric, *triplets, perturb=perturb)
    with torch.no_grad():
        d0, d1 = objective.distances(attacked, torch.arange(len(attacked)))
    return float(((d1 < d0) == (triplets[3].flatten() > 0.5)).float().mean())


def autoattack(metric: Metric, triplets: Triplets, perturb: str, kind: str, steps: int) -> Tensor:
    """Run one of AutoAttack's attacks, and return the attacked images in [-1, 1]."""
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    classifier = TripletClassifier(metric, *triplets, perturb=perturb)
    attack = AutoAttack(classifier, attacks=[kind], eps=EPS, norm="Linf", seed=0, version="custom")
    attack.apgd.n_iter, attack.apgd.n_restarts, attack.square.n_queries = steps, 1, 20 * steps
    found: Tensor = attack.run_standard_evaluation(classifier.images, classifier.labels, batch_size=50)[0]
    return 2 * found - 1


def attacked(
    metric: Metric, standard: Metric, triplets: Triplets, perturb: str, steps: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield each attack's name and the attacked images."""
    own, other = (RankFlip(each, *triplets, perturb=perturb) for each in (metric, standard))
    other.goal = float("inf")  # a transferred attack does not know when it has succeeded
    yield "natural", own.x
    yield f"PGD {steps}", PGD("linf", EPS, steps)(own, own.x)
    yield f"PGD {steps}, 2 restarts", PGD("linf", EPS, steps, restarts=2)(own, own.x)
    yield f"PGD {10 * steps}", PGD("linf", EPS, 10 * steps)(own, own.x)
    yield f"APGD {steps}", APGD("linf", EPS, steps)(own, own.x)
    yield f"AutoAttack's APGD-CE {steps}", autoattack(metric, triplets, perturb, "apgd-ce", steps)
    yield f"Square, {20 * steps} queries", autoattack(metric, triplets, perturb, "square", steps)
    yield "transfer from LPIPS", PGD("linf", EPS, steps)(other, other.x)
    for k in (8, 16, 32, 64):
        long = PGD("linf", k / 255, 7 * steps, momentum=0.6)  # a large budget needs more steps
        yield f"PGD {7 * steps}, eps {k}/255", long(own, own.x)


def measure(
    metric: Metric, standard: Metric, triplets: Triplets, perturb: str, steps: int = 30
) -> dict[str, float]:
    """Return the share judged right by attack. Some attacks are made on `standard`."""
    return {
        name: share_right(metric, triplets, perturb, images)
        for name, images in attacked(metric, standard, triplets, perturb, steps)
    }
