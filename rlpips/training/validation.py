"""Scores of a metric in training: its accuracy on judgements, clean and attacked, and its inflation."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from rlpips.attacks.base import Attack
from rlpips.attacks.objectives import Inflate
from rlpips.evaluation.judgement_measurement import measure_2afc
from rlpips.evaluation.scores import accuracy, mean_of
from rlpips.metric.lpips import LPIPS
from rlpips.system.processes import Processes
from rlpips.training.attack_pictures import save_attacked_triplets
from rlpips.training.batches import Items
from rlpips.training.recipe import Recipe
from rlpips.training.settings import Settings

_PICTURED = 4  # triplets in a picture


def validate(
    recipe: Recipe, metric: LPIPS, data: Items, settings: Settings, picture: Path | None = None
) -> dict[str, float]:
    """Score a metric on triplets, clean and with each image attacked that the recipe attacks.

    Args:
        recipe: the recipe. Its attack is used, with the budget `eps` and `settings.validation_steps` steps.
        metric: the metric, on `settings.device`. It is left in the mode, eval or train, that it was in.
        data: triplets with judgements.
        settings: how many triplets and how many steps.
        picture: a PNG file to show some attacked triplets in; none is written without attacks.

    Returns:
        'natural', the accuracy on clean triplets, and under names such as 'x0' the accuracy when that image
        is attacked. 'score' is the mean of 'natural' and of the mean accuracy under attack. With attacks also
        'inflation', the median distance from references to their attacked copies over the median distance
        of the triplets.
    """
    training = metric.training
    metric.eval()
    device, limit = torch.device(settings.device), settings.validation_limit
    targets = [perturb for perturb in recipe.perturb if perturb != "self"]
    if recipe.mode == "natural" or not settings.validation_steps:
        targets = []
    kind = "linf" if recipe.attack == "ssa" else recipe.attack
    steps = settings.validation_steps or 1
    attack = dataclasses.replace(recipe, attack=kind, steps=steps, step_size=None).make_attack(recipe.eps, 0)

    some = evenly_spaced(data, limit)
    clean = measure_2afc(metric, some, device=device)  # type: ignore[arg-type]
    scores = {"natural": mean_of(accuracy)(*clean)}
    for target in targets:
        scores[target] = mean_of(accuracy)(*measure_2afc(metric, some, attack, target, device=device))  # type: ignore[arg-type]
    under_attack = [scores[target] for target in targets]
    natural = scores["natural"]
    score = (natural + float(np.mean(under_attack))) / 2 if targets else natural
    if targets:
        ordinary = float(np.median(np.concatenate(clean[:2])))
        inflated = _attacked_self_distance(metric, some, attack, device)
        scores["inflation"] = inflated / ordinary if ordinary else math.inf
        if picture is not None:
            pictured = evenly_spaced(data, _PICTURED)
            examples = [pictured[i] for i in range(len(pictured))]
            save_attacked_triplets(picture, metric, examples, attack, targets[0], device)
    metric.train(training)
    return {"score": score, **scores}


def _attacked_self_distance(metric: LPIPS, data: Items, attack: Attack, device: torch.device) -> float:
    """Return the median distance from references to their attacked copies."""
    processes, own = Processes.current(), {}
    for number, rows in processes.batches(len(data), 32):  # type: ignore[arg-type]
        ref = torch.stack([data[i]["ref"] for i in rows]).to(device)
        objective = Inflate(metric, ref)
        attacked = attack(objective, ref, rows)
        with torch.no_grad():
            own[number] = objective(attacked, torch.arange(len(rows), device=device)).cpu()
    return float(torch.cat(processes.gather(own)).median())


def evenly_spaced(data: Items, limit: int | None) -> Subset[dict[str, Any]]:
    """Take at most `limit` items, evenly spaced, because data sets list one subset after the other."""
    count = len(data)  # type: ignore[arg-type]
    taken = min(count, limit or count)
    return Subset(data, [i * count // taken for i in range(taken)])
