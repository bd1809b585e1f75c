import pytest
import torch
from attack_toys import EPS, triplets
from peers import peers

from rlpips.attacks import SSA
from rlpips.attacks.metrics import distances
from rlpips.attacks.objectives import Inflate, RankFlip


def test_ssa_pushes_right_images_away_and_pulls_wrong_ones_near():
    metric, _ = peers("alex")
    ref, x0, x1, judge = triplets(6)
    for perturb, start in (("x0", x0), ("x1", x1)):
        objective = RankFlip(metric, ref, x0, x1, judge, perturb)
        with torch.no_grad():
            found = SSA("linf", EPS, 8)(objective, objective.x)
            change = distances(metric, found, ref) - distances(metric, start, ref)
        right = (judge < 0.5) == (perturb == "x0")
        assert (change[right] > 0).all()
        assert change[~right].mean() < change[right].mean()
    with pytest.raises(TypeError, match="SSA attacks x0 or x1"):
        SSA("linf", EPS, 2)(Inflate(metric, ref), ref)
