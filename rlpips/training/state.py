"""Everything that changes during a run, which a run that was interrupted goes on from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from rlpips.metric.lpips import LPIPS
from rlpips.training.losses import TripletLoss
from rlpips.training.optimisation import clamp_heads, new_average, new_optimizer
from rlpips.training.parts import add_parts
from rlpips.training.recipe import Recipe


@dataclass
class TrainingState:
    """Everything that changes during a run.

    Attributes:
        loss: the loss, with the metric and the ranking network.
        optimizer: the optimizer of both.
        average: the moving average of the metric's weights, if the recipe has one.
        step: the number of steps taken.
        seconds: how long they took.
        rows: of the table `log.csv`.
        scores: of the table `scores.csv`.
        best: the state dict of the best metric so far, if the recipe keeps it (`patience`).
    """

    loss: TripletLoss
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    step: int = 0
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None

    @property
    def metric(self) -> LPIPS:
        """The metric that the run would end with now, if it does not keep the best."""
        if self.average is None:
            return self.loss.metric
        return self.average.module  # type: ignore[return-value]  # a copy of it

    @property
    def weights(self) -> dict[str, Tensor]:
        """The state dict of the metric that the run would end with now."""
        return self.metric.state_dict() if self.best is None else self.best

    def to_dict(self) -> dict[str, Any]:
        """Return everything as tensors and plain containers."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "rows": self.rows,
            "scores": self.scores,
            "best": self.best,
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go back to what `to_dict` returned."""
        self.loss.load_state_dict(saved["loss"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.step, self.rows, self.scores = saved["step"], saved["rows"], saved["scores"]
        self.best = saved["best"]
        self.seconds = saved["seconds"]

    def out_of_patience(self, patience: int) -> bool:
        """Tell whether the last `patience` epochs brought no better score; with a patience of 0, never."""
        values = [row["score"] for row in self.scores if row["epoch"]]
        return (
            bool(patience) and len(values) > patience and max(values[-patience:]) <= max(values[:-patience])
        )


def new_state(
    recipe: Recipe, scale: float, device: torch.device, examples: tuple[Tensor, Tensor]
) -> TrainingState:
    """Return the state that a run begins with.

    Args:
        recipe: the recipe.
        scale: the unit of distance of the loss.
        device: where to train.
        examples: references and distorted images, `(N, 3, H, W)` in [-1, 1], which set the floors and the
            weights of layers of pixels.

    Raises:
        ValueError: `recipe.weights` does not fit `recipe.net`, or has other layers of pixels.
        CheckpointError: the file of `recipe.weights` is damaged, or no metric's.
        WeightsUnavailableError: `recipe.weights` are not on this machine and cannot be fetched.
    """
    metric = new_metric(recipe)
    add_parts(metric, recipe.pixels, recipe.floors, *examples)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        loss = TripletLoss(metric, recipe, scale).to(device)
    average = new_average(metric) if recipe.ema else None
    return TrainingState(loss, new_optimizer(loss, recipe), average)


def new_metric(recipe: Recipe) -> LPIPS:
    """Build the metric that a recipe starts from."""
    arguments: dict[str, Any] = {
        "net": recipe.net,
        "pnet_tune": recipe.train != "heads",
        "use_dropout": recipe.dropout,
        "eval_mode": False,
        "check_range": False,
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        if recipe.train == "scratch":
            metric = LPIPS(pretrained=False, pnet_rand=True, **arguments)
        elif recipe.weights == "imagenet":
            metric = LPIPS(pretrained=False, **arguments)
        else:
            metric = LPIPS(weights=recipe.weights, **arguments)
    clamp_heads(metric)
    return metric
