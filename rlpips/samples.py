"""Pictures of attacked triplets, to see while a metric trains what the attacker does to it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlpips.attacks import Attack
from rlpips.images import to_png
from rlpips.objectives import Metric, RankFlip


def attacked_triplets(
    metric: Metric,
    examples: Sequence[dict[str, Any]],
    attack: Attack,
    perturb: str,
    device: str | torch.device = "cpu",
) -> bytes:
    """Draw a row for each triplet: ref, x0, x1, and each attacked image with its difference.

    Differences are magnified until they fill the range, and grey where there is none.

    Args:
        metric: the metric under attack, on `device`.
        examples: triplets of one size, with `ref`, `p0`, `p1` `(3, H, W)` in [-1, 1] and `judge`.
        attack: what the attacker does, to break the judgement.
        perturb: what is attacked: 'x0', 'x1', 'ref' or 'x0+x1'.
        device: where to compute.

    Returns:
        A PNG file.
    """
    ref, x0, x1, judge = (
        torch.stack([example[name] for example in examples]).to(device)
        for name in ("ref", "p0", "p1", "judge")
    )
    objective = RankFlip(metric, ref, x0, x1, judge, perturb)
    attacked = attack(objective, objective.x)
    columns = [ref, x0, x1]
    shape = (len(ref), -1, *ref.shape[1:])
    pairs = zip(objective.x.view(shape).unbind(1), attacked.view(shape).unbind(1), strict=True)
    for before, after in pairs:
        columns += [after, _magnified(after - before)]
    rows = torch.cat(columns, dim=3).movedim(1, 3).flatten(0, 1)  # (N * H, columns * W, 3)
    return to_png(((rows.cpu().numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8))


def _magnified(difference: Tensor) -> Tensor:
    return difference / difference.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-8)
