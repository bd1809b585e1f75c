"""Pictures of attacked triplets, which show during training what the attacker does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlpips.attacks.base import Attack
from rlpips.attacks.metrics import Metric
from rlpips.attacks.objectives import RankFlip
from rlpips.evaluation.pictures import Image, magnified_difference, save_side_by_side


def save_attacked_triplets(
    path: Path,
    metric: Metric,
    examples: Sequence[dict[str, Any]],
    attack: Attack,
    perturb: str,
    device: str | torch.device = "cpu",
) -> None:
    """Write a picture with a row for each triplet: ref, x0, x1, and each attacked image and its change.

    Args:
        path: the PNG file. Its folder is made if it does not exist.
        metric: the metric under attack, on `device`.
        examples: triplets of one size, with `ref`, `p0`, `p1` `(3, H, W)` in [-1, 1] and `judge`.
        attack: the attack, which tries to make the metric contradict the judgement.
        perturb: what is attacked: 'x0', 'x1', 'ref' or 'x0+x1'.
        device: where to compute.

    Raises:
        OSError: the file cannot be written.
    """
    ref, x0, x1, judge = (
        torch.stack([example[name] for example in examples]).to(device)
        for name in ("ref", "p0", "p1", "judge")
    )
    objective = RankFlip(metric, ref, x0, x1, judge, perturb)
    attacked = attack(objective, objective.x)
    columns = [_images(each) for each in (ref, x0, x1)]
    shape = (len(ref), -1, *ref.shape[1:])
    for before, after in zip(objective.x.view(shape).unbind(1), attacked.view(shape).unbind(1), strict=True):
        changes = map(magnified_difference, _images(before), _images(after))
        columns += [_images(after), list(changes)]
    save_side_by_side(path, [np.concatenate(column, axis=1) for column in columns])


def _images(batch: Tensor) -> list[Image]:
    return list(batch.float().cpu().numpy())
