"""How weights change: the optimizer, its learning rate, their moving average, and the limit on heads."""

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rlpips.metric.lpips import LPIPS
from rlpips.training.losses import TripletLoss
from rlpips.training.recipe import Recipe


def new_optimizer(loss: TripletLoss, recipe: Recipe) -> torch.optim.Optimizer:
    """Make the optimizer of what is trained, with a learning rate each for weights, biases and heads."""
    biases = [p for name, p in loss.metric.net.named_parameters() if name.endswith("bias")]
    weights = [p for name, p in loss.metric.net.named_parameters() if not name.endswith("bias")]
    groups = [
        (weights, 1.0),
        (biases, recipe.bias_lr),
        (list(loss.metric.lins.parameters()), recipe.head_lr),
        ([] if loss.ranking is None else list(loss.ranking.parameters()), 1.0),
    ]
    trained = [([p for p in parameters if p.requires_grad], factor) for parameters, factor in groups]
    return torch.optim.AdamW(
        [{"params": parameters, "lr": recipe.lr * factor} for parameters, factor in trained if parameters],
        betas=(recipe.beta1, 0.999),
        weight_decay=recipe.weight_decay,
    )


def rate_factor(recipe: Recipe, step: int, done: float, whole: float) -> float:
    """Return the learning rate of a step as a fraction of the recipe's.

    Args:
        recipe: the recipe.
        step: the step's number, from 0, for the warm-up, which takes at most a fifth of the run.
        done: how much of the run is done, in steps or seconds.
        whole: how long the run is, in the same unit.

    >>> [round(rate_factor(Recipe(epochs=1, decay_epochs=2), step, step, 30), 2) for step in (0, 10, 20)]
    [1.0, 1.0, 0.5]
    """
    warm = min(1.0, max((step + 1) / recipe.warmup, 5 * done / whole)) if recipe.warmup else 1.0
    if recipe.schedule == "cosine":
        return warm * (1 + math.cos(math.pi * min(done, whole) / whole)) / 2
    epoch = min(int(done * recipe.total_epochs // whole), recipe.total_epochs - 1)
    return warm * (1 - max(0, epoch - recipe.epochs) / max(1, recipe.decay_epochs))


def new_average(metric: LPIPS) -> AveragedModel:
    """Begin a moving average of weights with those that a metric has; the average is in eval mode."""
    average = AveragedModel(metric).requires_grad_(False).eval()
    average.update_parameters(metric)  # the first update is a copy, and only later ones average
    return average


def update_average(average: AveragedModel, metric: nn.Module, ema: float, step: int) -> None:
    """Move an average towards the weights that a metric has after a step, with the number `step` from 0.

    The decay is smaller at first, so that a young average forgets the weights that the run started from.
    """
    decay = min(ema, (step + 1) / (step + 10))
    average.multi_avg_fn = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average.update_parameters(metric)


@torch.no_grad()
def clamp_heads(metric: LPIPS) -> None:
    """Clamp the heads' weights at 0, so that distances cannot become negative."""
    for lin in metric.lins:
        lin.channel_weights.clamp_(min=0)  # type: ignore[operator]
