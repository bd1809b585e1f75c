"""What training minimises: how often, and how clearly, a metric ranks triplets in the wrong order."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from rlpips.attacks.base import Attack
from rlpips.attacks.metrics import distances
from rlpips.attacks.objectives import Inflate, RankFlip
from rlpips.metric.lpips import LPIPS
from rlpips.metric.reference import Reference
from rlpips.training.ranking import Dist2LogitLayer, log_distance, ranking_logits
from rlpips.training.recipe import Recipe
from rlpips.training.triplet_batch import Attacked, Triplets

_TEMPERATURE = 0.1  # of the contrastive loss, in units of distance
_NEGATIVES = 7  # other references that the contrastive loss compares with each reference


class Misrank(RankFlip):
    """The attacker's objective in training: make the ranking wrong.

    Its value is the cross entropy between the ranking network's prediction and the judgement. Without a
    ranking network it is how far the two distances are in the wrong order.
    """

    goal = float("inf")

    def __init__(self, ranking: nn.Module | None, metric: Any, triplets: Triplets, perturb: str) -> None:
        super().__init__(
            metric, triplets.ref, triplets.x0, triplets.x1, triplets.judge, perturb, triplets.other
        )
        self.ranking, self.judge = ranking, triplets.judge

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Return a value `(len(index),)` for each attacked image."""
        if self.ranking is None:
            return super().__call__(x, index)
        logits = ranking_logits(self.ranking, *self.distances(x, index))
        return F.binary_cross_entropy_with_logits(logits, self.judge[index], reduction="none")


class _AutocastMetric:
    """A metric whose backbone runs in the recipe's precision."""

    def __init__(self, metric: LPIPS, precision: str) -> None:
        self.metric, self.precision = metric, precision

    def reference(self, images: Tensor) -> Reference:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.metric.reference(images)

    def __call__(self, a: Any, b: Any) -> Tensor:
        a, b = (each if isinstance(each, Reference) else self.reference(each) for each in (a, b))
        return self.metric(a, b)


class TripletLoss(nn.Module):
    """The loss of a recipe, with the metric and the ranking network that it trains.

    Args:
        metric: the metric.
        recipe: the recipe.
        scale: the unit of distance for the term that the recipe's `inflation` weighs.

    Attributes:
        metric: the metric.
        ranking: LPIPS' ranking network, which returns logits; None if the recipe ranks by the ratio.
    """

    def __init__(self, metric: LPIPS, recipe: Recipe, scale: float = 1.0) -> None:
        super().__init__()
        self.metric, self.scale = metric, scale
        learned = recipe.ranking == "network" and recipe.mode != "contrastive"
        self.ranking = Dist2LogitLayer(use_sigmoid=False) if learned else None
        self.recipe = recipe
        self._autocast_metric = _AutocastMetric(metric, recipe.precision)

    def attack(self, triplets: Triplets, attack: Attack) -> list[Attacked]:
        """Attack the metric and the ranking network as they are now, without dropout.

        What is attacked in a triplet follows from its position in the step's batch: of several targets in the
        recipe, each takes an equal share of the batch.
        """
        recipe, found = self.recipe, []
        if recipe.mode == "natural":
            return []
        training = self.training
        self.eval()
        try:
            # the outermost autocast keeps the weights that those within it cast, for all passes
            with torch.autocast(triplets.ref.device.type, enabled=False):
                targets = triplets.positions * len(recipe.perturb) // triplets.step_total
                for k, perturb in enumerate(recipe.perturb):
                    rows = (targets == k).nonzero().flatten()
                    if not len(rows):
                        continue
                    some = triplets[rows]
                    objective = self._objective(some, perturb)
                    start = some.ref if isinstance(objective, Inflate) else objective.x
                    images = attack(objective, start, some.positions.tolist())
                    found.append(Attacked(perturb, rows, images))
        finally:
            self.train(training)
        return found

    def _objective(self, triplets: Triplets, perturb: str) -> Any:
        """Return what the attacker increases."""
        if perturb == "self" or self.recipe.mode == "contrastive":
            return Inflate(self._autocast_metric, triplets.ref)
        return Misrank(self.ranking, self._autocast_metric, triplets, perturb)

    def forward(self, triplets: Triplets, attacked: Sequence[Attacked]) -> dict[str, Tensor]:
        """Return the loss and its terms.

        `loss = clean H + H* + distill D + distill_attacked D* + inflation I`, with the recipe's weights.

        H is the cross entropy between the predicted ranking and the judgement, D the mean squared difference
        between the log distances and the first teacher's, and I the distance from a reference to its attacked
        copy, divided by `scale`. A star marks attacked triplets. Without attacks, `loss = H + distill D`.
        The contrastive mode has a loss of its own, InfoNCE.

        Returns:
            'loss', and by name its terms without their weights: 'clean', 'distill', 'attacked',
            'distill_attacked' and 'inflation'; also 'accuracy' and 'attacked_accuracy', the mean share of
            people who chose as the metric does. Each is a sum over this batch, divided by the number of
            triplets in the whole step: what the parts of a step return adds up to the step's means.
        """
        recipe, count = self.recipe, len(triplets.ref)
        # all images in one list, and for each triplet the rows of its images, clean and attacked
        images = [triplets.ref, triplets.x0, triplets.x1]
        first = torch.arange(count, device=triplets.ref.device)
        clean_rows = {"ref": first, "x0": first + count, "x1": first + 2 * count}
        attacked_rows = {name: rows.clone() for name, rows in clean_rows.items()}
        is_self = torch.zeros_like(first, dtype=torch.bool)
        for each in attacked:
            for name, replaced in each.replacements().items():
                new_rows = sum(map(len, images)) + torch.arange(len(replaced), device=first.device)
                attacked_rows[name][each.rows] = new_rows
                images.append(replaced)
            is_self[each.rows] = each.perturb == "self"
        if recipe.mode == "contrastive":
            distance = self._distances(torch.cat(images), *_contrastive_pairs(clean_rows, attacked_rows))
            return {"loss": _info_nce(distance, triplets.judge) * count / triplets.step_total}
        # the pairs to measure: x0 and x1 to ref, clean and attacked, and attacked references to themselves
        ranked, inflated = (~is_self).nonzero().flatten(), is_self.nonzero().flatten()
        with_clean = not attacked or bool(recipe.clean or recipe.distill)
        pairs = [(clean_rows[x], clean_rows["ref"]) for x in ("x0", "x1") if with_clean]
        if attacked:
            pairs += [(attacked_rows[x][ranked], attacked_rows["ref"][ranked]) for x in ("x0", "x1")]
            pairs += [(attacked_rows["ref"][inflated], clean_rows["ref"][inflated])]
        a, b = (torch.cat(rows) for rows in zip(*pairs, strict=True))
        found = list(torch.split(self._distances(torch.cat(images), a, b), [len(rows) for rows, _ in pairs]))
        terms: dict[str, Tensor] = {}
        if with_clean:
            d0, d1, *found = found
            names = ("clean", "accuracy", "distill")
            terms |= self._ranking_terms(d0, d1, triplets, names, triplets.step_total)
        if attacked:
            d0, d1, inflation = found
            self_share = recipe.perturb.count("self") / len(recipe.perturb)
            if self_share < 1:
                names = ("attacked", "attacked_accuracy", "distill_attacked")
                total = triplets.step_total * (1 - self_share)
                terms |= self._ranking_terms(d0, d1, triplets[ranked], names, total)
            if self_share:
                terms["inflation"] = (inflation / self.scale).sum() / (triplets.step_total * self_share)
        weights = {name: getattr(recipe, name) for name in ("distill", "distill_attacked", "inflation")}
        weights |= {"clean": recipe.clean if attacked else 1.0, "attacked": 1.0}
        loss = torch.stack([weights[name] * term for name, term in terms.items() if name in weights]).sum()
        return {"loss": loss, **terms}

    def _distances(self, images: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Measure pairs of rows of `images`; an image runs through the backbone once, if it is in a pair."""
        rows, places = torch.unique(torch.cat([a, b]), return_inverse=True)
        features = self._autocast_metric.reference(images[rows])
        return distances(self.metric, features[places[: len(a)]], features[places[len(a) :]])

    def _ranking_terms(
        self, d0: Tensor, d1: Tensor, triplets: Triplets, names: tuple[str, str, str], total: float
    ) -> dict[str, Tensor]:
        """Return the cross entropy, the accuracy and, with teachers, the regression, under these names."""
        logits = ranking_logits(self.ranking, d0, d1) + self.recipe.margin * (1 - 2 * triplets.judge)
        with torch.no_grad():
            agreeing = torch.where(d1 < d0, triplets.judge, 1 - triplets.judge)
        entropy, accuracy, regression = names
        values = {
            entropy: F.binary_cross_entropy_with_logits(logits, triplets.judge, reduction="none"),
            accuracy: agreeing,
        }
        if triplets.teacher is not None:
            error = torch.stack([log_distance(d0), log_distance(d1)], dim=1) - triplets.teacher
            values[regression] = error.square().mean(dim=1)
        return {name: value.sum() / total for name, value in values.items()}


def _contrastive_pairs(clean: Mapping[str, Tensor], attacked: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Pair each reference with its positives (attacked copy, x0, x1), then with its negatives.

    The negatives are other references of the batch.
    """
    negatives = [clean["ref"].roll(k) for k in range(1, min(_NEGATIVES, len(clean["ref"]) - 1) + 1)]
    partners = [attacked["ref"], clean["x0"], clean["x1"], *negatives]
    return clean["ref"].repeat(len(partners)), torch.cat(partners)


def _info_nce(distance: Tensor, judge: Tensor) -> Tensor:
    """Return InfoNCE (van den Oord et al. 2018) of the distances of `_contrastive_pairs`.

    `-log(P / (P + N))`, where `P` is the sum of `w exp(-d / 0.1)` over the positives, and `N` that of
    `exp(-d / 0.1)` over the negatives.

    The weight of the attacked copy is 1, that of `x0` and `x1` the share of people who chose each.
    """
    logits = -distance.view(-1, len(judge)) / _TEMPERATURE
    weights = torch.stack([torch.ones_like(judge), 1 - judge, judge])
    positives = logits[:3] + weights.log()
    return (torch.cat([positives, logits[3:]]).logsumexp(dim=0) - positives.logsumexp(dim=0)).mean()
