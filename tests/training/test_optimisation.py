import dataclasses
import math

import pytest
import torch
from toys import Triplets, random_metric
from trained import changed, rows, tensors

from rlpips.training import Recipe, train
from rlpips.training.optimisation import rate_factor


def test_the_moving_average_lies_between_start_and_end(recipe, tmp_path):
    recipe = dataclasses.replace(recipe, epochs=2, lr=1e-3)
    last = tensors(train(recipe, Triplets(), tmp_path / "last"))
    mean = tensors(train(dataclasses.replace(recipe, ema=0.9), Triplets(), tmp_path / "mean"))
    first = random_metric().state_dict()
    assert changed(mean, last)
    for key in mean:
        low, high = torch.minimum(first[key], last[key]), torch.maximum(first[key], last[key])
        assert ((mean[key] >= low - 3e-3) & (mean[key] <= high + 3e-3)).all()
        if changed(mean, last) & {key}:
            assert (mean[key] - first[key]).abs().mean() < (last[key] - first[key]).abs().mean()


def one_step(recipe, tmp_path, **changes):
    """Return how the metric's parameters change in the only step of a run."""
    recipe = dataclasses.replace(recipe, batch=16, **changes)
    after = tensors(train(recipe, Triplets(), tmp_path / str(len(list(tmp_path.iterdir())))))
    before = random_metric().state_dict()
    return {key: after[key] - before[key] for key in after}


def test_rates_of_weights_biases_and_heads(recipe, tmp_path):
    moved = one_step(recipe, tmp_path, train="all", lr=1e-4, bias_lr=30.0, head_lr=5.0)
    for key, factor in (("net.slice2.3.weight", 1), ("net.slice2.3.bias", 30), ("lin1.model.0.weight", 5)):
        # Adam's first step is as long as the rate, whatever the gradient
        assert moved[key].abs().max() == pytest.approx(factor * 1e-4, rel=0.01)


def test_weight_decay_pulls_to_zero(recipe, tmp_path):
    plain, pulled = (
        one_step(recipe, tmp_path, train="all", lr=1e-3, weight_decay=decay) for decay in (0.0, 0.5)
    )
    for key in ("net.slice1.0.weight", "net.slice5.10.weight"):
        weight = random_metric().state_dict()[key]
        torch.testing.assert_close(pulled[key] - plain[key], -1e-3 * 0.5 * weight, atol=1e-7, rtol=1e-3)


def test_long_gradients_are_clipped(recipe, tmp_path):
    plain, clipped = (
        one_step(recipe, tmp_path, train="all", lr=1e-3, clip=clip) for clip in (math.inf, 1e-12)
    )
    # which is far below what Adam adds to the length of a gradient
    assert clipped["net.slice2.3.weight"].abs().max() < 1e-3 * plain["net.slice2.3.weight"].abs().max()


def test_the_rate_falls_as_a_cosine(recipe, tmp_path):
    train(dataclasses.replace(recipe, schedule="cosine", epochs=4), Triplets(), tmp_path / "run")
    log = rows(tmp_path / "run" / "log.csv")
    assert [row["step"] for row in log] == [2, 4, 6, 8]
    for row in log:
        assert row["lr"] == pytest.approx(0.5e-4 * (1 + math.cos(math.pi * (row["step"] - 1) / 8)))


def test_the_rate_warms_up_in_a_fifth_of_the_run_at_most_and_falls_to_its_end():
    recipe = Recipe(warmup=50, schedule="cosine", epochs=1, decay_epochs=0)
    cosine = [(1 + math.cos(math.pi * step / 4125)) / 2 for step in range(4125)]
    long = [rate_factor(recipe, step, step, 4125) for step in range(4125)]
    assert long[:50] == pytest.approx([(step + 1) / 50 * cosine[step] for step in range(50)])
    assert long[50:] == pytest.approx(cosine[50:])
    for whole in (250, 4125):  # runs that made weights which ship
        assert rate_factor(recipe, 24, 24, whole) == pytest.approx((1 + math.cos(math.pi * 24 / whole)) / 4)
    short = [rate_factor(recipe, step, step, 8) for step in range(8)]
    assert short[2:] == pytest.approx([(1 + math.cos(math.pi * step / 8)) / 2 for step in range(2, 8)])
    falls = Recipe(epochs=1, decay_epochs=2)
    assert [rate_factor(falls, 0, seconds, 60.0) for seconds in (0, 19, 21, 41, 61)] == [1, 1, 1, 0.5, 0.5]


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"clip": 1e-9}, True),
        ({"weight_decay": 5.0}, True),
        ({"schedule": "cosine"}, True),
        ({"warmup": 1}, False),
        ({"warmup": 9}, True),
        ({"bias_lr": 50.0}, True),
        ({"head_lr": 50.0}, True),
        ({"eps_range": (0.0, 0.0)}, True),
        ({"symmetries": True}, True),
    ],
)
def test_every_option_of_the_steps_has_its_effect(recipe, tmp_path, change, differs):
    recipe = dataclasses.replace(
        recipe, mode="adversarial", train="all", lr=1e-3, batch=2, perturb=("x0",), decay_epochs=1
    )
    plain = tensors(train(recipe, Triplets(), tmp_path / "plain"))
    other = tensors(train(dataclasses.replace(recipe, **change), Triplets(), tmp_path / "other"))
    assert bool(changed(plain, other)) == differs
    first = random_metric().state_dict()
    moved = {
        name: sum((state[key] - first[key]).norm().item() for key in first if key.endswith(kind))
        for name, state in (("plain", plain), ("other", other))
        for kind in (".bias",)
    }
    if "clip" in change:  # Adam divides by the gradients' size, but for what it adds to it
        assert moved["other"] < 0.9 * moved["plain"]
    if "bias_lr" in change:
        assert moved["other"] > 10 * moved["plain"]
