import dataclasses
import json
import math

import numpy as np
import pytest

from rlpips.attacks import APGD, PGD, SSA, StAdv
from rlpips.backbones import ARCHITECTURES
from rlpips.training import RECIPES, Recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net": "resnet"}, "net='resnet' is unknown; choose alex, vgg, squeeze"),
        ({"mode": "evil"}, "choose natural, adversarial, contrastive"),
        ({"train": "nothing"}, "choose heads, all, scratch"),
        ({"perturb": ("x2",)}, "perturb='x2' is unknown"),
        ({"perturb": ()}, "perturb is empty"),
        ({"clean": -1.0}, "clean=-1.0 must be at least 0"),
        ({"distill": math.inf}, "at least 0 and finite"),
        ({"eps_range": (1.0, 0.5)}, "must rise"),
        ({"epochs": 0, "decay_epochs": 0}, "both 0"),
        ({"lr": 0.0}, "lr=0.0 must be positive"),
        ({"lr": math.nan}, "lr=nan must be positive"),
        ({"ema": 1.0}, r"ema=1.0 must be in \[0, 1\)"),
        ({"batch": 0}, "batch=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"attack": "ssa", "perturb": ("ref",)}, "ssa attacks x0 or x1, not ref"),
        ({"mode": "contrastive"}, "perturb must be 'ref'"),
        ({"perturb": ("x0", "self")}, "need each other"),
        ({"inflation": 1.0}, "need each other"),
        ({"perturb": ("self",), "inflation": 1.0}, "needs a positive weight of clean triplets"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"eps": math.nan}, "eps|attack"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**changes)


def test_every_backbone_can_be_trained():
    (net,) = (field for field in dataclasses.fields(Recipe) if field.name == "net")
    assert net.metadata["choices"] == tuple(ARCHITECTURES)


def test_help_on_the_class_explains_every_field():
    for field in dataclasses.fields(Recipe):
        assert f"{field.name}: {field.metadata['text']}." in Recipe.__doc__


def test_attacks_are_those_that_the_recipe_names():
    assert Recipe(steps=3, step_size=0.01).make_attack(0.5, 7) == PGD("linf", 0.5, 3, 0.01, seed=7)
    kinds = {"l2": PGD, "apgd-linf": APGD, "apgd-l2": APGD, "ssa": SSA, "stadv": StAdv}
    for name, kind in kinds.items():
        attack = Recipe(attack=name).make_attack(1 / 255, 0)
        assert type(attack) is kind
        assert attack.eps == 1 / 255


@pytest.mark.parametrize(
    "recipe",
    [*RECIPES.values(), Recipe(perturb=("x0", "ref"), clip=1.0, eps_range=(0.5, 2.0), step_size=0.1)],
)
def test_recipes_survive_json(recipe):
    values = json.loads(json.dumps(recipe.to_json(), allow_nan=False))
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    assert Recipe(**given | {"clip": float("inf") if given["clip"] is None else given["clip"]}) == recipe


def test_the_published_recipes():
    assert RECIPES["lpips"] == Recipe(mode="natural", train="heads", lr=1e-4, beta1=0.5, batch=50)
    assert (RECIPES["lpips"].epochs, RECIPES["lpips"].decay_epochs) == (5, 5)
    robust = RECIPES["r-lpips"]
    assert (robust.mode, robust.perturb, robust.eps) == ("adversarial", ("x0",), 4 / 255)


def test_steps_draw_their_attack():
    recipe = Recipe(eps=4 / 255, eps_range=(0.5, 2.5), steps=3, stadv=0.25)
    drawn = [recipe.draw_attack(np.random.default_rng((0, step))) for step in range(400)]
    moved = [attack.eps for attack in drawn if isinstance(attack, StAdv)]
    pushed = [attack.eps for attack in drawn if isinstance(attack, PGD)]
    assert 70 < len(moved) < 130
    assert len(moved) + len(pushed) == 400
    assert 0.25 < min(moved) < 0.3 < 0.95 < max(moved) < 1
    assert 2 / 255 < min(pushed) < 2.2 / 255 < 9.8 / 255 < max(pushed) < 10 / 255
    assert len({attack.seed for attack in drawn}) == 400
    with pytest.raises(ValueError, match="stadv=2.0 must be at most 1"):
        Recipe(stadv=2.0)
