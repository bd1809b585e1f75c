import dataclasses

import lpips
import pytest
import torch
from peers import hushed, peers
from toys import Triplets as Items
from toys import random_metric

import rlpips
from rlpips.training import Recipe, TripletLoss, Triplets

EPS = 4 / 255


def batch(count=8, seed=0):
    items = Items(count, seed)
    other = items.ref.roll(-1, dims=0)
    return Triplets(items.ref, items.p0, items.p1, items.judge, None, other, torch.arange(count), count)


def loss_of(recipe, scale=1.0):
    torch.manual_seed(0)
    return TripletLoss(random_metric(), recipe, scale)


def test_the_natural_loss_is_that_of_lpips():
    ours, theirs = peers("alex")
    loss = TripletLoss(ours, Recipe())
    ranking = lpips.BCERankingLoss()
    ranking.net.load_state_dict(loss.ranking.state_dict())
    some = batch()
    with torch.no_grad():
        d0, d1 = theirs(some.ref, some.x0), theirs(some.ref, some.x1)
        with hushed():
            expected = ranking(d0, d1, some.judge.view(-1, 1, 1, 1) * 2 - 1)
        found = loss(some, [])
    assert found["loss"].item() == pytest.approx(expected.item(), abs=1e-6)
    trainer = lpips.Trainer()
    accuracy = trainer.compute_accuracy(d0, d1, some.judge).mean()
    assert found["accuracy"].item() == pytest.approx(accuracy, abs=1e-6)


def test_ranking_by_ratio_knows_the_logarithm():
    loss = loss_of(Recipe(ranking="ratio"))
    assert loss.ranking is None
    some = batch()
    d0, d1 = (loss.metric(x, some.ref).flatten() for x in (some.x0, some.x1))
    logit = 4 * (d0 / d1).log()
    expected = torch.nn.functional.binary_cross_entropy(logit.sigmoid(), some.judge)
    assert loss(some, [])["loss"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_margin_counts_against_the_right_answer():
    plain, wide = (loss_of(Recipe(ranking="ratio", margin=margin)) for margin in (0.0, 3.0))
    some = dataclasses.replace(batch(), judge=torch.tensor([0.0, 1.0] * 4))
    d0, d1 = (plain.metric(x, some.ref).flatten() for x in (some.x0, some.x1))
    logit = 4 * (d0 / d1).log() + torch.tensor([3.0, -3.0] * 4)
    expected = torch.nn.functional.binary_cross_entropy(logit.sigmoid(), some.judge)
    assert wide(some, [])["loss"].item() == pytest.approx(expected.item(), abs=1e-5)
    assert wide(some, [])["accuracy"] == plain(some, [])["accuracy"]


@pytest.mark.parametrize("ranking", ["network", "ratio"])
@pytest.mark.parametrize("perturb", ["x0", "x1", "ref", "x0+x1"])
def test_attacks_raise_the_loss_within_their_budget(perturb, ranking):
    recipe = Recipe(mode="adversarial", perturb=(perturb,), steps=4, ranking=ranking, clean=1.0)
    loss, some = loss_of(recipe), batch()
    some = dataclasses.replace(some, judge=some.judge.round())
    (found,) = loss.attack(some, recipe.make_attack(EPS, 0))
    originals = {"ref": some.ref, "x0": some.x0, "x1": some.x1}
    assert set(found.replacements()) == set(perturb.split("+"))
    for name, attacked in found.replacements().items():
        assert 0 < (attacked - originals[name]).abs().max() <= 2 * EPS + 1e-6
        assert attacked.abs().max() <= 1
    with torch.no_grad():
        terms = loss(some, [found])
    assert terms["attacked"] > terms["clean"]
    assert terms["loss"].item() == pytest.approx((terms["attacked"] + terms["clean"]).item(), abs=1e-6)
    assert terms["attacked_accuracy"] <= terms["accuracy"]


def test_attacks_are_on_the_model_of_the_moment_without_dropout():
    recipe = Recipe(mode="adversarial", steps=2)
    torch.manual_seed(0)
    metric = rlpips.LPIPS(pretrained=False, pnet_rand=True, eval_mode=False, check_range=False)
    loss, some = TripletLoss(metric, recipe).train(), batch()
    modes = []
    for module in loss.modules():
        module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    first = loss.attack(some, recipe.make_attack(EPS, 0))[0].images
    assert modes
    assert not any(modes)
    assert metric.training
    assert metric.lin0.training
    assert torch.equal(first, loss.attack(some, recipe.make_attack(EPS, 0))[0].images)
    with torch.no_grad():
        loss.ranking.model[-1].weight.neg_()
    assert not torch.equal(first, loss.attack(some, recipe.make_attack(EPS, 0))[0].images)
    with torch.no_grad():
        loss.ranking.model[-1].weight.neg_()
        metric.net.slice1[0].weight.neg_()
    assert not torch.equal(first, loss.attack(some, recipe.make_attack(EPS, 0))[0].images)
    assert all(p.grad is None for p in loss.parameters())


def test_mixtures_split_a_batch_evenly():
    targets = ("x0", "x1", "ref", "self")
    recipe = Recipe(mode="adversarial", perturb=targets, inflation=1.0, steps=1)
    found = loss_of(recipe).attack(batch(), recipe.make_attack(EPS, 0))
    assert [each.perturb for each in found] == list(targets)
    assert [each.rows.tolist() for each in found] == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize("attack", ["linf", "ssa", "stadv"])
def test_attacks_do_not_depend_on_the_parts_of_a_step(attack):
    recipe = Recipe(mode="adversarial", attack=attack, perturb=("x0", "x1"), steps=3, ranking="ratio")
    loss, some = loss_of(recipe), batch()
    tool = recipe.make_attack(0.5 if attack == "stadv" else EPS, 3)
    whole = torch.empty_like(some.x0)
    for each in loss.attack(some, tool):
        whole[each.rows] = each.images
    for k in (0, 1):
        part = some[k::2]
        for each in loss.attack(part, tool):
            difference = (each.images - whole[part.positions[each.rows]]).abs()
            assert (difference > 1e-4).float().mean() < 0.01  # steps along signs enlarge rounding
            assert difference.mean() < 1e-4


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(mode="adversarial", perturb=("x0", "ref", "x0+x1", "self"), inflation=0.5, clean=0.5, steps=1),
        Recipe(mode="adversarial", perturb=("self",), inflation=0.5, clean=0.5, steps=1),
    ],
)
def test_parts_of_a_step_add_up(recipe):
    loss, some = loss_of(recipe, scale=0.3), batch()
    attack = recipe.make_attack(EPS, 0)
    with torch.no_grad():
        whole = loss(some, loss.attack(some, attack))
        parts = [loss(some[k::2], loss.attack(some[k::2], attack)) for k in (0, 1)]
    for name, value in whole.items():
        assert value.isfinite()
        assert sum(part[name] for part in parts).item() == pytest.approx(value.item(), abs=1e-3)


def test_inflation_is_the_attacked_self_distance_in_units_of_the_scale():
    recipe = Recipe(mode="adversarial", perturb=("x0", "self"), inflation=2.0, steps=2)
    loss, some = loss_of(recipe, scale=0.25), batch()
    found = loss.attack(some, recipe.make_attack(EPS, 0))
    pushed = found[1]
    with torch.no_grad():
        terms = loss(some, found)
        distance = loss.metric(pushed.images, some.ref[pushed.rows]).mean() / 0.25
    assert terms["inflation"].item() == pytest.approx(distance.item(), rel=1e-4)
    assert terms["loss"].item() == pytest.approx(
        (terms["attacked"] + 2 * terms["inflation"]).item(), rel=1e-5
    )


def test_distillation_is_the_squared_error_of_logarithms():
    loss, some = loss_of(Recipe(distill=3.0)), batch()
    with torch.no_grad():
        log = torch.stack([loss.metric(x, some.ref).flatten().log() for x in (some.x0, some.x1)], dim=1)
        terms = loss(dataclasses.replace(some, teacher=log + 0.5), [])
    assert terms["distill"].item() == pytest.approx(0.25, abs=1e-4)
    assert terms["loss"].item() == pytest.approx((terms["clean"] + 3 * terms["distill"]).item(), rel=1e-5)


def test_the_contrastive_loss_is_infonce():
    recipe = Recipe(mode="contrastive", perturb=("ref",), steps=2)
    loss, some = loss_of(recipe), batch(4)
    found = loss.attack(some, recipe.make_attack(EPS, 0))

    def alike(a, b):
        return (-loss.metric(a, b).flatten().double() / 0.1).exp()

    with torch.no_grad():
        value = loss(some, found)["loss"].item()
        likes = alike(found[0].images, some.ref)
        likes += (1 - some.judge) * alike(some.x0, some.ref) + some.judge * alike(some.x1, some.ref)
        others = sum(alike(some.ref.roll(k, dims=0), some.ref) for k in (1, 2, 3))
        assert value == pytest.approx(-(likes / (likes + others)).log().mean().item(), rel=1e-4)
        for lin in loss.metric.lins:
            lin.channel_weights.mul_(1e4)
        assert loss(some, found)["loss"].isfinite()


def test_bfloat16_is_for_the_backbone_only():
    exact, rough = loss_of(Recipe()), loss_of(Recipe(precision="bfloat16"))
    some = batch()
    seen = []
    rough.metric.net.register_forward_hook(lambda _, __, out: seen.append(out[0].dtype))
    value = rough(some, [])["loss"]
    assert seen == [torch.bfloat16]
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact(some, [])["loss"].item(), abs=0.02)
