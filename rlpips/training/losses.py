"""What training minimises: how often, and how clearly, a metric ranks triplets otherwise than it should."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from rlpips.attacks.base import Attack
from rlpips.attacks.metrics import distances
from rlpips.attacks.objectives import Inflate, RankFlip
from rlpips.metric.lpips import LPIPS
from rlpips.metric.reference import Reference
from rlpips.training.recipe import Recipe

_SHARPNESS = 4.0  # of the ranking by ratio: a logit of 4 for one distance e times the other
_TEMPERATURE = 0.1  # of the contrastive loss, in units of distance
_OTHERS = 7  # references that the contrastive loss holds against each
_LEAST = 1e-6  # distance below which logarithms are cut off


class Dist2LogitLayer(nn.Module):
    """LPIPS' ranking network: how many people prefer the second of two images, from their distances.

    `forward(d0, d1)` takes two distances `(N, 1, H, W)` and returns the same shape: the share in [0, 1] who
    would choose the image of `d1`, or its logit without `use_sigmoid`.
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


@dataclass(frozen=True)
class Triplets:
    """A batch of triplets.

    Attributes:
        ref: references `(N, 3, H, W)` in [-1, 1].
        x0: the first distorted images.
        x1: the second.
        judge: `(N,)`, the share that chose `x1`.
        teacher: log distances of both images to their references by the teachers, `(N, 2)`; none without.
        other: unrelated images `(N, 3, H, W)` for the attack 'ssa': the references of the next triplets.
        numbers: `(N,)`, positions in the whole step's batch, which name random streams and what is attacked.
        whole: how many triplets the whole step has, over all processes and parts.
    """

    ref: Tensor
    x0: Tensor
    x1: Tensor
    judge: Tensor
    teacher: Tensor | None
    other: Tensor
    numbers: Tensor
    whole: int

    def __getitem__(self, index: Tensor | slice) -> "Triplets":
        """Select some triplets of the batch."""
        teacher = None if self.teacher is None else self.teacher[index]
        ref, x0, x1, judge, other, numbers = (
            each[index] for each in (self.ref, self.x0, self.x1, self.judge, self.other, self.numbers)
        )
        return Triplets(ref, x0, x1, judge, teacher, other, numbers, self.whole)


@dataclass(frozen=True)
class Attacked:
    """Some triplets of a batch after an attack: `rows` of it, what was perturbed, and the images found.

    `images` are `(len(rows), 3, H, W)`, or `(len(rows), 2, 3, H, W)` for 'x0+x1'.
    """

    perturb: str
    rows: Tensor
    images: Tensor

    def parts(self) -> dict[str, Tensor]:
        """Return the images by what they replace."""
        if self.perturb == "x0+x1":
            return dict(zip(("x0", "x1"), self.images.unbind(1), strict=True))
        return {"ref" if self.perturb == "self" else self.perturb: self.images}


class Misrank(RankFlip):
    """Make the ranking err: the value is the cross entropy of the network's guess and the judges' choice."""

    goal = float("inf")

    def __init__(self, ranking: nn.Module | None, metric: Any, some: Triplets, perturb: str) -> None:
        super().__init__(metric, some.ref, some.x0, some.x1, some.judge, perturb, some.other)
        self.ranking, self.judge = ranking, some.judge

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the cross entropies, or by how much the order is wrong where no network ranks."""
        if self.ranking is None:
            return super().__call__(x, index)
        logits = guess(self.ranking, *self.distances(x, index))
        return F.binary_cross_entropy_with_logits(logits, self.judge[index], reduction="none")


def guess(ranking: nn.Module | None, d0: Tensor, d1: Tensor) -> Tensor:
    """Return logits `(N,)` of the share that chooses the second image, from distances `(N,)`."""
    if ranking is None:
        return _SHARPNESS * (_log(d0) - _log(d1))
    logits: Tensor = ranking(d0.view(-1, 1, 1, 1), d1.view(-1, 1, 1, 1))
    return logits.flatten()


def _log(d: Tensor) -> Tensor:
    return d.clamp(min=_LEAST).log()


class _Precise:
    """A metric whose backbone runs in another precision."""

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
        scale: the unit of the distance that the recipe's `inflation` weighs.

    Attributes:
        metric: the metric.
        ranking: the ranking network of LPIPS, which gives logits; None where the recipe ranks by ratio.
    """

    def __init__(self, metric: LPIPS, recipe: Recipe, scale: float = 1.0) -> None:
        super().__init__()
        self.metric, self.scale = metric, scale
        learned = recipe.ranking == "network" and recipe.mode != "contrastive"
        self.ranking = Dist2LogitLayer(use_sigmoid=False) if learned else None
        self.recipe = recipe
        self._seen = _Precise(metric, recipe.precision)

    def attack(self, triplets: Triplets, attack: Attack) -> list[Attacked]:
        """Attack every triplet as its number says, against the metric and the ranking network as they are."""
        recipe, found = self.recipe, []
        if recipe.mode == "natural":
            return []
        training = self.training
        self.eval()
        try:
            # the outermost autocast keeps what those within it cast: the weights, for all passes
            with torch.autocast(triplets.ref.device.type, enabled=False):
                for k, perturb in enumerate(recipe.perturb):
                    share = triplets.numbers * len(recipe.perturb) // triplets.whole
                    rows = (share == k).nonzero().flatten()
                    if not len(rows):
                        continue
                    some = triplets[rows]
                    objective = self._objective(some, perturb)
                    start = some.ref if isinstance(objective, Inflate) else objective.x
                    found.append(Attacked(perturb, rows, attack(objective, start, some.numbers.tolist())))
        finally:
            self.train(training)
        return found

    def _objective(self, triplets: Triplets, perturb: str) -> Any:
        """Return what the attacker pursues."""
        if perturb == "self" or self.recipe.mode == "contrastive":
            return Inflate(self._seen, triplets.ref)
        return Misrank(self.ranking, self._seen, triplets, perturb)

    def forward(self, triplets: Triplets, attacked: Sequence[Attacked]) -> dict[str, Tensor]:
        """Return the loss, 'loss', and what it is made of, as shares of the whole step's means.

        A step's triplets may come in parts: what is returned for a part is its sum over the part, divided by
        the number of triplets in the whole step, so the parts' terms add up to those of the step.
        """
        recipe, count = self.recipe, len(triplets.ref)
        images = [triplets.ref, triplets.x0, triplets.x1]
        first = torch.arange(count, device=triplets.ref.device)
        clean = {"ref": first, "x0": first + count, "x1": first + 2 * count}  # rows of all images
        moved = {name: rows.clone() for name, rows in clean.items()}
        is_self = torch.zeros_like(first, dtype=torch.bool)
        for each in attacked:
            for name, part in each.parts().items():
                moved[name][each.rows] = sum(map(len, images)) + torch.arange(len(part), device=first.device)
                images.append(part)
            is_self[each.rows] = each.perturb == "self"
        if recipe.mode == "contrastive":
            distance = self._distances(torch.cat(images), *_contrasts(clean, moved))
            return {"loss": _contrastive(distance, triplets.judge) * count / triplets.whole}
        ranked, pushed = (~is_self).nonzero().flatten(), is_self.nonzero().flatten()
        with_clean = not attacked or bool(recipe.clean or recipe.distill)
        pairs = [(clean[x], clean["ref"]) for x in ("x0", "x1") if with_clean]
        if attacked:
            pairs += [(moved[x][ranked], moved["ref"][ranked]) for x in ("x0", "x1")]
            pairs += [(moved["ref"][pushed], clean["ref"][pushed])]
        a, b = (torch.cat(rows) for rows in zip(*pairs, strict=True))
        found = list(torch.split(self._distances(torch.cat(images), a, b), [len(rows) for rows, _ in pairs]))
        terms: dict[str, Tensor] = {}
        if with_clean:
            d0, d1, *found = found
            terms |= self._terms(d0, d1, triplets, ("clean", "accuracy", "distill"), triplets.whole)
        if attacked:
            d0, d1, distance = found
            own = recipe.perturb.count("self") / len(recipe.perturb)
            names = ("attacked", "attacked_accuracy", "distill_attacked")
            if own < 1:
                terms |= self._terms(d0, d1, triplets[ranked], names, triplets.whole * (1 - own))
            if own:
                terms["inflation"] = (distance / self.scale).sum() / (triplets.whole * own)
        weights = {name: getattr(recipe, name) for name in ("distill", "distill_attacked", "inflation")}
        weights |= {"clean": recipe.clean if attacked else 1.0, "attacked": 1.0}
        loss = torch.stack([weights[name] * term for name, term in terms.items() if name in weights]).sum()
        return {"loss": loss, **terms}

    def _distances(self, images: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Measure pairs of rows, running those images that occur in pairs once."""
        rows, places = torch.unique(torch.cat([a, b]), return_inverse=True)
        seen = self._seen.reference(images[rows])
        return distances(self.metric, seen[places[: len(a)]], seen[places[len(a) :]])

    def _terms(
        self, d0: Tensor, d1: Tensor, triplets: Triplets, names: tuple[str, str, str], whole: float
    ) -> dict[str, Tensor]:
        """Return the ranking loss, the accuracy, and with teachers the regression, under these names."""
        logits = guess(self.ranking, d0, d1)
        with torch.no_grad():
            right = torch.where(d1 < d0, triplets.judge, 1 - triplets.judge)
        entropy, accuracy, regression = names
        values = {
            entropy: F.binary_cross_entropy_with_logits(logits, triplets.judge, reduction="none"),
            accuracy: right,
        }
        if triplets.teacher is not None:
            error = torch.stack([_log(d0), _log(d1)], dim=1) - triplets.teacher
            values[regression] = error.square().mean(dim=1)
        return {name: value.sum() / whole for name, value in values.items()}


def _contrasts(clean: Mapping[str, Tensor], moved: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the pairs of the contrastive loss: each reference with its likes, and with other references."""
    others = [clean["ref"].roll(k) for k in range(1, min(_OTHERS, len(clean["ref"]) - 1) + 1)]
    likes = [moved["ref"], clean["x0"], clean["x1"], *others]
    return clean["ref"].repeat(len(likes)), torch.cat(likes)


def _contrastive(distance: Tensor, judge: Tensor) -> Tensor:
    """Return InfoNCE: likes are the attacked copy, and the two versions by the share that chose each."""
    logits = -distance.view(-1, len(judge)) / _TEMPERATURE
    weights = torch.stack([torch.ones_like(judge), 1 - judge, judge])
    likes = logits[:3] + weights.log()
    return (torch.cat([likes, logits[3:]]).logsumexp(dim=0) - likes.logsumexp(dim=0)).mean()
