import dataclasses
import math

import numpy as np
import pytest
import torch
from toys import Triplets, random_metric
from trained import changed, rows, tensors

from rlpips.hub.nested import load_nested
from rlpips.training import Settings, train


@pytest.mark.parametrize("mode", ["natural", "adversarial"])
def test_parts_of_a_step_change_nothing(recipe, tmp_path, mode):
    recipe = dataclasses.replace(recipe, mode=mode, perturb=("x0", "x1"), lr=1e-3)
    whole, parts = (
        tensors(train(recipe, Triplets(), tmp_path / str(n), settings=Settings(parts=n))) for n in (1, 2)
    )
    for key, value in whole.items():
        torch.testing.assert_close(value, parts[key], atol=1e-5, rtol=0)


def test_bfloat16_symmetries_and_eps_range(recipe, tmp_path):
    recipe = dataclasses.replace(
        recipe, mode="adversarial", train="all", precision="bfloat16", symmetries=True, eps_range=(0.5, 2.0),
        clip=1.0, weight_decay=0.01, schedule="cosine", warmup=1,
    )  # fmt: skip
    after = tensors(train(recipe, Triplets(), tmp_path / "run"))
    assert all(value.isfinite().all() for value in after.values())


def test_the_budget_of_a_step_is_drawn_from_its_range(recipe, tmp_path):
    recipe = dataclasses.replace(recipe, mode="adversarial", lr=1e-2)
    once, twice, as_doubled, drawn = (
        tensors(train(dataclasses.replace(recipe, eps=eps, eps_range=between), Triplets(), tmp_path / name))
        for name, eps, between in [
            ("once", 4 / 255, (1.0, 1.0)),
            ("twice", 8 / 255, (1.0, 1.0)),
            ("as-doubled", 4 / 255, (2.0, 2.0)),
            ("drawn", 4 / 255, (1.0, 2.0)),
        ]
    )
    assert not changed(twice, as_doubled)
    assert changed(once, twice)
    assert changed(drawn, once)
    assert changed(drawn, twice)


class Scaled(Triplets):
    """Triplets of which some make the loss infinite: their judgements are."""

    def __init__(self, count, wrong):
        super().__init__(count)
        self.judge[wrong] = torch.inf


def test_a_step_that_is_not_finite_is_left_out(recipe, tmp_path, caplog):
    recipe = dataclasses.replace(recipe, batch=2, epochs=1, train="all", ema=0.5, lr=1e-2, ranking="ratio")
    path = train(recipe, Scaled(16, [3]), tmp_path / "run")
    assert [r.getMessage() for r in caplog.records if "left out" in r.getMessage()] == [
        f"step {np.random.default_rng((0, 0)).permutation(16).tolist().index(3) // 2 + 1} is left out: the loss is not finite"
    ]
    assert all(value.isfinite().all() for value in tensors(path).values())
    (row,) = rows(tmp_path / "run" / "log.csv")
    assert row["step"] == 8
    assert math.isfinite(row["loss"])


def test_a_first_step_that_is_left_out_changes_nothing(recipe, tmp_path, recwarn):
    recipe = dataclasses.replace(recipe, epochs=1, train="all", ema=0.5, lr=1e-2, ranking="ratio")
    order = np.random.default_rng((0, 0)).permutation(16)
    path = train(recipe, Scaled(16, order.tolist()), tmp_path / "run")  # both steps are left out
    assert not changed(tensors(path), random_metric().state_dict())
    assert [each for each in recwarn if "lr_scheduler" in str(each.message)] == []


@pytest.mark.parametrize("first", [11, 15])  # an epoch ends with step 16
def test_steps_that_are_not_finite_stop_a_run_and_reach_nothing_that_is_kept(
    recipe, tmp_path, monkeypatch, first
):
    from rlpips.training import loop

    recipe = dataclasses.replace(recipe, batch=2, epochs=3, train="all", ranking="ratio", lr=1e-2)
    data, run = Triplets(16), tmp_path / "run"
    step = loop.take_step

    def poisoned(recipe, model, state, triplets, parts):
        if state.step + 1 >= first:
            triplets.ref.fill_(torch.nan)
        return step(recipe, model, state, triplets, parts)

    monkeypatch.setattr(loop, "take_step", poisoned)
    with pytest.raises(
        RuntimeError,
        match=rf"step {first + 4}: the loss is not finite for the 5th step in a row; .*state.safetensors keeps an earlier"
        r".*\(--lr 0.001 --weights .*run/state.safetensors\)",
    ):
        train(recipe, data, run)
    kept = load_nested(run / "state.safetensors")
    assert kept["step"] == 8
    assert all(value.isfinite().all() for value in kept["loss"].values())
    assert not (run / "metric.safetensors").exists()
    monkeypatch.undo()
    whole = tensors(train(recipe, data, tmp_path / "whole"))
    assert not changed(tensors(train(recipe, data, run)), whole)


def test_weights_that_overflow_are_not_kept(recipe, tmp_path, monkeypatch):
    def overflow(self):
        with torch.no_grad():
            self.param_groups[0]["params"][0].mul_(torch.inf)

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    with pytest.raises(RuntimeError, match=r"step 1: weights are not finite; no step is kept"):
        train(dataclasses.replace(recipe, batch=16), Triplets(), tmp_path / "run")
    assert not (tmp_path / "run" / "state.safetensors").exists()
