import pytest
import torch
from attack_toys import EPS, plain, triplets
from peers import peers

import rlpips
from rlpips.attacks import APGD, PGD
from rlpips.attacks.metrics import distances
from rlpips.attacks.objectives import PERTURB, Deflate, FeatureMSE, Inflate, RankFlip, SemanticSimilarity


def test_objectives_say_what_they_hold_in_a_line():
    metric, _ = peers("alex")
    some = triplets(2)
    flip = RankFlip(metric, *some, perturb="x1")
    shape = "(2, 3, 32, 32)"
    assert repr(flip) == f"RankFlip({metric!r}, ref={shape}, perturb=x1)"
    assert repr(RankFlip(plain, *some)) == f"RankFlip(plain, ref={shape}, perturb=x0)"
    assert repr(Inflate(plain, some[0], 0.5)) == f"Inflate(plain, x={shape}, goal=0.5)"
    assert repr(Deflate(metric, some[0])) == f"Deflate({metric!r}, x={shape}, goal=inf)"
    assert repr(FeatureMSE(metric, some[0])) == f"FeatureMSE({metric!r}, x={shape})"
    assert repr(SemanticSimilarity(flip)) == f"SemanticSimilarity({metric!r}, ref={shape})"


def test_rank_flip_measures_what_it_says():
    metric, _ = peers("alex")
    ref, x0, x1, judge = triplets(4)
    d0, d1 = (metric(each, ref).flatten() for each in (x0, x1))
    expected = torch.where(judge < 0.5, d0 - d1, d1 - d0)
    for perturb in PERTURB:
        objective = RankFlip(metric, ref, x0, x1, judge, perturb)
        assert torch.allclose(objective(objective.x, torch.arange(4)), expected, atol=1e-5)
        some = torch.tensor([2, 0])
        assert torch.allclose(objective(objective.x[some], some), expected[some], atol=1e-5)
    with pytest.raises(ValueError, match="perturb='y'"):
        RankFlip(metric, ref, x0, x1, judge, "y")


@pytest.mark.parametrize(
    "attack", [PGD("linf", EPS, 8), PGD("linf", EPS, 8, random_start=False), APGD("linf", EPS, 8)]
)
def test_images_are_inflated_even_where_the_gradient_vanishes(attack):
    """At the image itself the distance is at its minimum, and its gradient is zero."""
    metric, _ = peers("alex")
    x = triplets(4)[0]
    with torch.no_grad():
        assert (distances(metric, attack(Inflate(metric, x), x), x) > 0.02).all()
        assert (distances(metric, attack(FeatureMSE(metric, x), x), x) > 0.01).all()


def test_more_steps_and_larger_budgets_inflate_more():
    metric, _ = peers("alex")
    x = triplets(4)[0]
    with torch.no_grad():
        values = [
            distances(metric, PGD("linf", eps, steps)(Inflate(metric, x), x), x).mean()
            for eps, steps in ((EPS, 2), (EPS, 12), (2 * EPS, 12))
        ]
    assert values[0] < values[1] < values[2]


def test_an_image_is_finished_at_the_goal_of_inflation():
    metric, _ = peers("alex")
    x = triplets(4)[0]
    with torch.no_grad():
        low = distances(metric, PGD("linf", EPS, 12)(Inflate(metric, x, goal=0.01), x), x)
        high = distances(metric, PGD("linf", EPS, 12)(Inflate(metric, x), x), x)
    assert (low > 0.01).all()
    assert low.mean() < high.mean()


@pytest.mark.parametrize("attack", [APGD("linf", EPS, 12), APGD("l2", 1.0, 12)])
def test_rank_flip_leads_attacks_where_cross_entropy_of_the_distances_leads_them(attack):
    class CrossEntropy(RankFlip):
        def __call__(self, x, index):
            scores = -torch.stack(self.distances(x, index), dim=1)
            wanted = (~self.x0_is_right[index]).long()
            return torch.nn.functional.cross_entropy(scores, wanted, reduction="none")

    some = triplets(dtype=torch.float64)
    flip, entropy = (kind(plain, *some, perturb="ref") for kind in (RankFlip, CrossEntropy))
    flip.goal = entropy.goal = float("inf")
    torch.testing.assert_close(attack(flip, flip.x), attack(entropy, entropy.x), atol=1e-9, rtol=0)


def test_nan_in_a_judgement_is_an_error():
    objective = RankFlip(lambda a, b: plain(a, b) * torch.nan, *triplets(3))
    with pytest.raises(rlpips.UndefinedDistanceError, match="<lambda> gives NaN for image 0"):
        PGD("linf", EPS, 3)(objective, objective.x)


def test_an_infinite_distance_breaks_a_judgement():
    objective = RankFlip(lambda a, b: plain(a, b) / 0, *triplets(1)[:3], torch.tensor([0.0]), "x0")
    objective._distance["x1"][:] = 1.0
    found = PGD("linf", EPS, 3)(objective, objective.x)
    assert torch.equal(found, objective.x)  # from the start


def test_different_images_are_made_to_look_near():
    metric, _ = peers("alex")
    x, far = triplets(4)[0], triplets(4, seed=9)[0]
    with torch.no_grad():
        found = PGD("linf", 2 * EPS, 10)(Deflate(metric, far), x)
        assert (distances(metric, found, far) < distances(metric, x, far)).all()


def passes(metric, run):
    """Count images that run through the backbone, forward and backward."""
    counts = {"forward": 0, "backward": 0}

    def backward(gradient):
        counts["backward"] += len(gradient)

    def forward(module, inputs, output):
        counts["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(backward)

    handle = metric.scaling_layer.register_forward_hook(forward)
    run()
    handle.remove()
    return counts


@pytest.mark.parametrize(
    ("perturb", "fixed", "moving"), [("x0", 2, 1), ("x1", 2, 1), ("ref", 2, 1), ("x0+x1", 1, 2)]
)
def test_a_step_costs_one_pass_for_each_attacked_image(perturb, fixed, moving):
    metric, _ = peers("alex")
    ref, x0, x1, _ = triplets(2)
    attack = PGD("linf", 0.0, 5)  # without a budget nothing is finished early

    def run():
        objective = RankFlip(metric, ref, x0, x1, torch.tensor([0.0, 0.0]), perturb)
        objective.goal = 1.0
        attack(objective, objective.x)

    counts = passes(metric, run)
    assert counts["backward"] == 5 * moving * 2
    assert counts["forward"] == (fixed + moving + (5 + 1) * moving) * 2
