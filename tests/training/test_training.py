import csv
import dataclasses
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from peers import hushed
from PIL import Image
from toys import SIZE, Triplets, random_metric, saved_metric

import rlpips
from rlpips.attacks import Inflate
from rlpips.evaluation import accuracy, measure_2afc
from rlpips.hub.digests import tensors_digest
from rlpips.hub.nested import load_nested, save_nested
from rlpips.hub.tensorfiles import read_metadata
from rlpips.training import Recipe, Settings, train
from rlpips.training.optimisation import rate_factor
from rlpips.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The file of a random metric to start from."""
    return saved_metric(tmp_path_factory.mktemp("start") / "random.pth")


@pytest.fixture
def recipe(start):
    """Two steps on 16 triplets."""
    return Recipe(weights=start, batch=8, epochs=1, decay_epochs=0, steps=2, dropout=False)


def tensors(path):
    return rlpips.LPIPS(weights=path, use_dropout=False).state_dict()


def rows(path):
    with path.open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def changed(a, b):
    return {key for key in a if not torch.equal(a[key], b[key])}


@pytest.mark.parametrize("how", ["heads", "all", "scratch"])
@pytest.mark.parametrize("mode", ["natural", "adversarial", "contrastive"])
def test_what_is_trained_changes_and_nothing_else(recipe, tmp_path, mode, how):
    perturb = ("ref",) if mode == "contrastive" else ("x0", "x1")
    recipe = dataclasses.replace(recipe, mode=mode, train=how, perturb=perturb, lr=1e-2, head_lr=10.0)
    before = random_metric().state_dict()
    after = tensors(train(recipe, Triplets(), tmp_path / "run"))
    heads = {key for key in before if key.startswith("lin")}
    everything = {key for key in before if not key.startswith("scaling_layer")}
    assert changed(before, after) == (heads if how == "heads" else everything)
    assert all((after[key] >= 0).all() for key in heads)
    assert any((after[key] == 0).any() for key in heads)  # which a step of 0.1 would have made negative
    assert all(value.isfinite().all() for value in after.values())


def test_training_learns_what_a_hidden_metric_judges(start, tmp_path):
    hidden = random_metric(seed=5)
    data = Triplets(64, judge=hidden)
    untrained = measure_2afc(random_metric(), data)
    recipe = Recipe(weights=start, batch=16, epochs=12, decay_epochs=3, lr=0.02, dropout=False)
    path = train(recipe, data, tmp_path / "run", validation=data)
    trained = measure_2afc(rlpips.LPIPS(weights=path), data)
    assert accuracy(*trained).mean() > accuracy(*untrained).mean() + 0.1
    scores = rows(tmp_path / "run" / "scores.csv")
    assert scores[-1]["natural"] == pytest.approx(accuracy(*trained).mean())
    log = rows(tmp_path / "run" / "log.csv")
    assert log[-1]["loss"] < log[0]["loss"]
    assert log[-1]["accuracy"] > log[0]["accuracy"]


def test_a_natural_run_is_that_of_lpips(start, tmp_path):
    recipe = Recipe(weights=start, batch=8, epochs=5, decay_epochs=5, lr=1e-3, dropout=False, seed=3)
    data = Triplets(8)
    ours = tensors(train(recipe, data, tmp_path / "run"))
    trainer = lpips.Trainer()
    with hushed():
        trainer.initialize("lpips", pnet_rand=True, use_gpu=False, is_train=True, lr=1e-3)
        trainer.net.load_state_dict(peer_names(random_metric().state_dict()))
        trainer.net.eval()  # no dropout
        torch.manual_seed(3)
        trainer.rankLoss.net.load_state_dict(rlpips.Dist2LogitLayer(use_sigmoid=False).state_dict())
        trainer.set_input(
            {key: torch.stack([item[key] for item in data]) for key in data[0] if key != "index"}
        )
        log = rows(tmp_path / "run" / "log.csv")
        for epoch in range(1, 11):
            assert log[epoch - 1]["lr"] == pytest.approx(trainer.old_lr)
            trainer.optimize_parameters()
            assert log[epoch - 1]["loss"] == pytest.approx(float(trainer.loss_total), abs=1e-5)
            if epoch == 1:
                once = {k: v.clone() for k, v in trainer.net.state_dict().items()}
            if epoch > 5:
                trainer.update_learning_rate(5)
    theirs = trainer.net.state_dict()
    single = dataclasses.replace(recipe, epochs=1, decay_epochs=0)
    for mine, other in ((tensors(train(single, data, tmp_path / "once")), once), (ours, theirs)):
        for key, value in peer_names(mine).items():
            torch.testing.assert_close(value, other[key], atol=2e-6, rtol=0)


def peer_names(state):
    return {key.replace("model.0", "model.1") if "lin" in key else key: value for key, value in state.items()}


@pytest.mark.parametrize("mode", ["natural", "adversarial"])
def test_parts_of_a_step_change_nothing(recipe, tmp_path, mode):
    recipe = dataclasses.replace(recipe, mode=mode, perturb=("x0", "x1"), lr=1e-3)
    whole, parts = (
        tensors(train(recipe, Triplets(), tmp_path / str(n), settings=Settings(parts=n))) for n in (1, 2)
    )
    for key, value in whole.items():
        torch.testing.assert_close(value, parts[key], atol=1e-5, rtol=0)


def test_a_run_repeats(recipe, tmp_path):
    recipe = dataclasses.replace(recipe, mode="adversarial", perturb=("x0", "ref"), dropout=True, train="all")
    states = []
    for name in ("one", "other"):
        torch.manual_seed(len(states))  # nothing is drawn from the global generator
        states.append(tensors(train(recipe, Triplets(), tmp_path / name)))
    assert not changed(*states)
    other = tensors(train(dataclasses.replace(recipe, seed=1), Triplets(), tmp_path / "seed"))
    assert changed(states[0], other)


def test_early_stop_keeps_the_best(start, tmp_path):
    hidden = random_metric(seed=5)
    recipe = Recipe(
        weights=start, batch=8, epochs=20, decay_epochs=0, lr=0.5, patience=2, dropout=False, ranking="ratio"
    )
    run, validation = tmp_path / "run", Triplets(40, 1, judge=hidden)
    path = train(recipe, Triplets(), run, validation=validation)
    scores = [row["score"] for row in rows(run / "scores.csv") if row["epoch"]]
    assert len(scores) < 20
    assert max(scores[-2:]) <= max(scores[:-2])
    kept = measure_2afc(rlpips.LPIPS(weights=path), validation)
    assert accuracy(*kept).mean() == pytest.approx(max(scores))
    assert len(rows(run / "log.csv")) == len(scores)
    before = tensors(path)
    train(recipe, Triplets(), run, validation=validation)  # it has stopped already
    assert not changed(before, tensors(path))
    assert not changed(before, tensors(run / "state.safetensors"))
    assert len(rows(run / "scores.csv")) == 1 + len(scores)


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


def test_bfloat16_symmetries_and_eps_range(recipe, tmp_path):
    recipe = dataclasses.replace(
        recipe, mode="adversarial", train="all", precision="bfloat16", symmetries=True, eps_range=(0.5, 2.0),
        clip=1.0, weight_decay=0.01, schedule="cosine", warmup=1,
    )  # fmt: skip
    after = tensors(train(recipe, Triplets(), tmp_path / "run"))
    assert all(value.isfinite().all() for value in after.values())


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


def test_a_metric_that_has_teachers_keeps_the_scale_of_the_first(start, tmp_path):
    data, teacher = Triplets(judge=None), random_metric(seed=5)
    other = random_metric(seed=6)
    recipe = Recipe(weights=start, train="all", dropout=False, batch=16, epochs=1, decay_epochs=0)
    path = train(recipe, data, tmp_path / "run", teachers={"first": teacher, "second": other})
    trained = rlpips.LPIPS(weights=path, check_range=False)
    with torch.no_grad():
        ratios = [trained(p, data.ref) / teacher(p, data.ref) for p in (data.p0, data.p1)]
    assert torch.cat(ratios).median().item() == pytest.approx(1, abs=0.02)


def test_distillation_pulls_distances_to_the_teachers(start, tmp_path):
    data, teacher = Triplets(judge=None), random_metric(seed=5)
    recipe = Recipe(weights=start, batch=8, epochs=15, decay_epochs=0, lr=0.02, distill=1.0, dropout=False)
    path = train(recipe, data, tmp_path / "run", teachers={"hidden": teacher})
    log = rows(tmp_path / "run" / "log.csv")
    assert log[-1]["distill"] < 0.2 * log[0]["distill"]
    trained = rlpips.LPIPS(weights=path)
    with torch.no_grad():
        target, found = (metric(data.p0, data.ref).log() for metric in (teacher, trained))
    assert (target - found).square().mean() < 0.1
    metadata = read_metadata(path)
    assert metadata["teachers"] == {"hidden": tensors_digest(teacher.state_dict())}


def test_the_metric_says_how_it_was_made(recipe, tmp_path):
    path = train(
        recipe, Triplets(), tmp_path / "run", validation=Triplets(4), description={"subsets": ["train/toy"]}
    )
    metadata = json.loads(json.dumps(read_metadata(path)))
    assert metadata["recipe"] == recipe.to_json()
    assert metadata["data"] == {"subsets": ["train/toy"], "count": 16}
    assert (metadata["rlpips"], metadata["torch"]) == (rlpips.__version__, torch.__version__)
    assert metadata["steps"] == 2
    assert [score["epoch"] for score in metadata["scores"]] == [0, 1]


def test_a_folder_goes_with_one_run(recipe, tmp_path):
    run = tmp_path / "run"
    path = train(recipe, Triplets(), run, description={"subsets": ["one"]})
    written = path.read_bytes()
    with pytest.raises(ValueError, match=r"recipe\.lr was 0\.0001 and is now 0\.5.*or another folder"):
        train(dataclasses.replace(recipe, lr=0.5), Triplets(), run, description={"subsets": ["one"]})
    with pytest.raises(ValueError, match=r"data\.subsets was \['one'\] and is now \['two'\]"):
        train(recipe, Triplets(), run, description={"subsets": ["two"]})
    with pytest.raises(ValueError, match=r"data\.subsets was \['one'\] and is now None"):
        train(recipe, Triplets(), run)
    with pytest.raises(ValueError, match=r"data\.count was 16 and is now 12"):
        train(recipe, Triplets(12), run, description={"subsets": ["one"]})
    with pytest.raises(ValueError, match=r"teachers\.mine was None and is now 'sha256:"):
        train(recipe, Triplets(), run, description={"subsets": ["one"]}, teachers={"mine": random_metric()})
    assert path.read_bytes() == written
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.txt").touch()
    with pytest.raises(ValueError, match="mine is not empty, and holds no run"):
        train(recipe, Triplets(), tmp_path / "mine", teachers={"mine": random_metric()})
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["letters.txt"]


def test_damaged_files_of_a_run_are_named(recipe, tmp_path):
    run = tmp_path / "run"
    train(recipe, Triplets(), run)
    state = run / "state.safetensors"
    good = state.read_bytes()
    advice = r"state\.safetensors is damaged; delete it to start the run from its beginning"
    for damage in (good[: len(good) // 2], b"", b"nonsense"):
        state.write_bytes(damage)
        with pytest.raises(rlpips.CheckpointError, match=advice):
            train(recipe, Triplets(), run)
    for write in (
        lambda: torch.save([1], state),
        lambda: save_nested(state, {"step": 3}, {}, {}),
        lambda: shutil.copy(state.with_name("metric.safetensors"), state),
    ):
        write()
        with pytest.raises(rlpips.CheckpointError, match=advice):
            train(recipe, Triplets(), run)
    (run / "run.json").write_text("{")
    with pytest.raises(rlpips.CheckpointError, match=r"run\.json is damaged"):
        train(recipe, Triplets(), run)


def test_a_state_is_held_to_its_digest_and_has_finite_weights(tmp_path):
    run = RunFolder(tmp_path, {})
    state = {
        "step": 3,
        "loss": {"lin0": torch.rand(4)},
        "rows": [{"loss": 0.5, "note": torch.nan}],
        "best": None,
    }
    run.save_state(state, {})
    found = run.load_state()
    assert torch.equal(found["loss"]["lin0"], state["loss"]["lin0"])
    assert found["step"] == 3
    run.state_file.write_bytes(run.state_file.read_bytes().replace(b'["step", 3]', b'["step", 4]'))
    with pytest.raises(rlpips.CheckpointError, match=r"state\.safetensors is damaged; delete it"):
        run.load_state()
    run.save_state({**state, "optimizer": {"state": {0: {"exp_avg": torch.tensor([1.0, torch.nan])}}}}, {})
    with pytest.raises(rlpips.CheckpointError, match=r"state\.safetensors has weights that are not finite"):
        run.load_state()


def test_what_a_killed_run_left_of_its_first_file_is_no_hindrance(tmp_path):
    (tmp_path / ".run.json.abc").touch()
    with RunFolder(tmp_path, {"recipe": {}, "data": {}, "teachers": {}}).opened():
        assert (tmp_path / "run.json").exists()


def test_two_runs_in_one_folder_at_once_are_refused(recipe, tmp_path):
    class Meddling(Triplets):
        refused = None

        def __getitem__(self, i):
            if self.refused is None:
                self.refused = pytest.raises(
                    ValueError, match="another process trains in .*run; wait until it"
                )
                with self.refused:
                    train(recipe, Triplets(), tmp_path / "run")
            return super().__getitem__(i)

    data = Meddling()
    path = train(recipe, data, tmp_path / "run")
    assert data.refused is not None
    assert path.exists()
    train(recipe, Triplets(), tmp_path / "run")  # it is free again


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


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_state_is_a_checkpoint_of_the_metric(recipe, tmp_path, ema):
    recipe = dataclasses.replace(recipe, epochs=3, lr=0.1, ema=ema)
    path = train(recipe, Triplets(), tmp_path / "run", validation=Triplets(8, 1))
    state = path.with_name("state.safetensors")
    assert not changed(tensors(path), tensors(state))
    metadata = read_metadata(state)
    assert metadata["recipe"] == recipe.to_json()
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has not finished; its metric so far is in .*run/state\.safetensors"
    ):
        rlpips.LPIPS(weights=path.parent)


def test_weights_that_overflow_are_not_kept(recipe, tmp_path, monkeypatch):
    def overflow(self):
        with torch.no_grad():
            self.param_groups[0]["params"][0].mul_(torch.inf)

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    with pytest.raises(RuntimeError, match=r"step 1: weights are not finite; no step is kept"):
        train(dataclasses.replace(recipe, batch=16), Triplets(), tmp_path / "run")
    assert not (tmp_path / "run" / "state.safetensors").exists()


def turned_like(image, original):
    """Tell in which of the eight ways an image is turned."""
    ways = [torch.rot90(original, turn, (-2, -1)) for turn in range(4)]
    ways += [way.flip(-1) for way in ways]
    return next(k for k, way in enumerate(ways) if torch.equal(image, way))


@pytest.mark.parametrize("taught", [False, True])
def test_symmetries_turn_each_triplet_and_teachers_see_them_so(recipe, tmp_path, taught):
    data = Triplets(32, judge=None if taught else "random")
    seen, shown = [], {}

    def find(images, names):
        for image in images:
            for i, item in enumerate(data):
                if any(abs(image.mean() - item[name].mean()) < 1e-7 for name in names):
                    yield (
                        i,
                        next(
                            turned_like(image, item[n])
                            for n in names
                            if abs(image.mean() - item[n].mean()) < 1e-7
                        ),
                    )

    def teacher(a, b):
        shown.update(find(b, ["ref"]))
        return (a - b).square().mean(dim=(1, 2, 3))

    from rlpips.training import loop

    take = loop.take_step

    def watched(recipe, model, state, triplets, parts):
        ways = [
            list(find(each, [name]))
            for name, each in (("ref", triplets.ref), ("p0", triplets.x0), ("p1", triplets.x1))
        ]
        assert ways[0] == ways[1] == ways[2]
        seen.append(dict(ways[0]))
        return take(recipe, model, state, triplets, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", watched)
        recipe = dataclasses.replace(recipe, symmetries=True, batch=32, epochs=2)
        train(recipe, data, tmp_path / "run", teachers={"plain": teacher} if taught else None)
    first, second = seen
    assert len(first) == 32
    assert set(first.values()) == set(range(8))
    if taught:
        assert first == second == shown
    else:
        assert first != second


class Mixed(Triplets):
    def __getitem__(self, i):
        item = super().__getitem__(i)
        return {**item, "p0": torch.zeros(3, 40, 40)} if i == 5 else item


@pytest.mark.parametrize(
    ("data", "changes", "settings", "error", "message"),
    [
        (Triplets(7), {}, {}, rlpips.DatasetError, "7 triplets are too few for a batch of 8"),
        (
            Mixed(),
            {},
            {},
            rlpips.DatasetError,
            r"images of one batch must have one size, got p0 of \[\(3, 32",
        ),
        (Triplets(judge=None), {}, {}, rlpips.DatasetError, "have no judgements, and there are no teachers"),
        (Triplets(), {"distill": 1.0}, {}, ValueError, "distill needs teachers"),
        (Triplets(), {"patience": 1}, {}, ValueError, "patience needs triplets to validate on"),
        (
            Triplets(),
            {},
            {"parts": 3},
            ValueError,
            "a batch of 8 does not divide among 3 processes and parts",
        ),
        (Triplets(), {"mode": "contrastive", "perturb": ("ref",)}, {"parts": 8}, ValueError, "two triplets"),
    ],
)
def test_what_cannot_be_trained_is_refused(recipe, tmp_path, data, changes, settings, error, message):
    with pytest.raises(error, match=message):
        train(dataclasses.replace(recipe, **changes), data, tmp_path / "run", settings=Settings(**settings))


def test_validation_attacks_as_the_recipe_does_and_shows_it(recipe, tmp_path):
    recipe = dataclasses.replace(recipe, mode="adversarial", perturb=("x0", "x0+x1"), epochs=2)
    run, validation = tmp_path / "run", Triplets(10, 1)
    path = train(recipe, Triplets(), run, validation=validation, settings=Settings(validation_steps=2))
    *_, last = rows(run / "scores.csv")
    metric = rlpips.LPIPS(weights=path)
    attack = dataclasses.replace(recipe, steps=2).make_attack(recipe.eps, 0)
    for perturb in recipe.perturb:
        found = accuracy(*measure_2afc(metric, validation, attack, perturb)).mean()
        assert last[perturb] == pytest.approx(found)
    d0, d1, judge = measure_2afc(metric, validation)
    natural = accuracy(d0, d1, judge).mean()
    pushed = attack(Inflate(metric, validation.ref), validation.ref, range(10))
    with torch.no_grad():
        inflation = np.median(metric(pushed, validation.ref)) / np.median([d0, d1])
    assert last["inflation"] == pytest.approx(inflation, rel=0.1)  # other batches, other last digits
    assert last["natural"] == pytest.approx(natural)
    assert last["score"] == pytest.approx((natural + (last["x0"] + last["x0+x1"]) / 2) / 2)
    assert sorted(file.name for file in (run / "samples").iterdir()) == ["epoch-01.png", "epoch-02.png"]
    picture = np.asarray(Image.open(run / "samples" / "epoch-02.png")).astype(int)
    assert picture.shape == (4 * SIZE, 5 * SIZE, 3)
    ref, x0, x1, attacked, difference = np.split(picture, 5, axis=1)
    for k, i in enumerate((0, 2, 5, 7)):
        for found, expected in ((ref, "ref"), (x0, "p0"), (x1, "p1")):
            own = rlpips.tensor2im(validation[i][expected][None], np.float64)
            np.testing.assert_allclose(found[k * SIZE : (k + 1) * SIZE], own, atol=1)
    assert 1 <= abs(attacked - x0).max() <= 5
    for change, shown in zip(np.split(attacked - x0, 4), np.split(difference, 4), strict=True):
        if not change.any():  # its judgement was broken from the start
            assert (shown == 128).all()
            continue
        assert abs(shown - 127.5).max() > 126  # magnified until it fills the range
        assert np.corrcoef(change.ravel(), shown.ravel())[0, 1] > 0.95
    assert ((attacked > x0) == (difference > 128))[abs(attacked - x0) >= 2].all()


def test_a_limited_validation_is_spread_over_the_data(recipe, tmp_path):
    class Watched(Triplets):
        seen = ()

        def __getitem__(self, i):
            self.seen = (*self.seen, i)
            return super().__getitem__(i)

    validation = Watched(12, 1)
    train(recipe, Triplets(), tmp_path / "run", validation=validation, settings=Settings(validation_limit=4))
    assert validation.seen == (0, 3, 6, 9) * 2  # before training and after


def test_tensorboard_tells_the_scores(recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    train(recipe, Triplets(), run, validation=Triplets(4), settings=Settings(tensorboard=True))
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    (loss,) = events.Scalars("train/loss")
    assert loss.step == 2
    assert loss.value == pytest.approx(rows(run / "log.csv")[0]["loss"], abs=1e-6)
    assert events.Scalars("validation/natural")[0].value == rows(run / "scores.csv")[1]["natural"]


def test_without_tensorboard_its_extra_is_named(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(rlpips.MissingExtraError, match=r"pip install 'rlpips\[tensorboard\]'"):
        train(recipe, Triplets(), tmp_path / "run", settings=Settings(tensorboard=True))


def test_a_terminal_sees_progress(recipe, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    for name in ("COLUMNS", "LINES"):  # wide enough to be read whole
        monkeypatch.setenv(name, "200")
    recipe = dataclasses.replace(recipe, mode="adversarial", clean=1.0)
    train(recipe, Triplets(), tmp_path / "run", settings=Settings(validation_steps=0))
    last = sys.stderr.getvalue().rstrip().rpartition("\r")[2]
    (row,) = rows(tmp_path / "run" / "log.csv")
    assert f"loss={row['loss']:.3f}" in last
    assert f"accuracy={row['accuracy']:.3f}" in last
    assert f"attack success={1 - row['attacked_accuracy']:.3f}" in last
    assert last.startswith("run: 100%")
    assert re.search(r"16/16 \[\d+:\d+<00:00, +[\d.]+triplet/s", last)


def test_workers_read_the_same(recipe, tmp_path):
    alone, helped = (
        tensors(train(recipe, Triplets(), tmp_path / str(n), settings=Settings(workers=n))) for n in (0, 1)
    )
    assert not changed(alone, helped)


def test_two_processes_train_as_one(start, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, torch\n"
        "from toys import Triplets\n"
        "from rlpips.training import Recipe\n"
        "from rlpips.training import train\n"
        "torch.set_num_threads(1)\n"
        "if 'RANK' in os.environ:\n"
        "    torch.distributed.init_process_group('gloo')\n"
        "recipe = Recipe(weights=sys.argv[1], mode='adversarial', perturb=('x0', 'self'), inflation=1.0, clean=1.0,\n"
        "                steps=2, batch=8, epochs=3, decay_epochs=0, train='all', dropout=False, distill=0.5,\n"
        "                ema=0.5)\n"
        "def teacher(a, b):\n"
        "    return (a - b).square().mean(dim=(1, 2, 3))\n"
        "train(recipe, Triplets(), sys.argv[2], validation=Triplets(5, 1), teachers={'plain': teacher})\n"
        "if 'RANK' in os.environ:\n"
        "    torch.distributed.destroy_process_group()\n"
    )
    path = os.pathsep.join([str(Path(rlpips.__file__).parents[1]), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    group = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, launcher in (("alone", []), ("group", group)):
        command = [sys.executable, *launcher, str(script), start, str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
        assert done.returncode == 0, done.stderr
    for table in ("log.csv", "scores.csv"):
        alone, together = (rows(tmp_path / name / table) for name in ("alone", "group"))
        assert len(alone) == (4 if table == "scores.csv" else 3)
        for one, other in zip(alone, together, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


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


def test_a_short_run_changes_the_metric_and_is_warned_of(recipe, tmp_path, caplog):
    recipe = dataclasses.replace(recipe, batch=2, warmup=50, ema=0.998, schedule="cosine", lr=1e-2)
    first = random_metric().state_dict()
    after = tensors(train(recipe, Triplets(), tmp_path / "run"))
    assert "this run takes 8 steps, and a metric improves little in fewer than some hundreds" in caplog.text
    plain = dataclasses.replace(recipe, warmup=0, ema=0.0)
    free = tensors(train(plain, Triplets(), tmp_path / "plain"))
    key = "lin0.model.1.weight" if "lin0.model.1.weight" in first else "lin0.model.0.weight"
    assert (after[key] - first[key]).abs().mean() > 0.3 * (free[key] - first[key]).abs().mean()


def test_a_run_of_minutes_ends_with_its_time_and_goes_on_where_it_was(recipe, tmp_path, caplog):
    recipe = dataclasses.replace(recipe, minutes=1 / 60, schedule="cosine")
    path = train(recipe, Triplets(), tmp_path / "run", validation=Triplets(4))
    state = load_nested(tmp_path / "run" / "state.safetensors")
    assert 1 <= state["seconds"] < 10
    log = rows(tmp_path / "run" / "log.csv")
    assert log[-1]["lr"] < 0.5 * log[0]["lr"]
    assert rows(tmp_path / "run" / "scores.csv")[-1]["epoch"] == log[-1]["epoch"]
    written = tensors(path)
    train(recipe, Triplets(), tmp_path / "run", validation=Triplets(4))  # its time is over
    assert not changed(written, tensors(path))
    assert load_nested(tmp_path / "run" / "state.safetensors")["step"] == state["step"]


def test_a_run_says_how_long_it_takes_and_what_came_of_it(recipe, tmp_path, caplog):
    recipe = dataclasses.replace(recipe, batch=1, mode="adversarial", steps=1)
    with caplog.at_level("INFO", logger="rlpips.training"):
        train(
            recipe,
            Triplets(),
            tmp_path / "run",
            validation=Triplets(4),
            settings=Settings(validation_steps=1),
        )
    assert re.search(r"11 of 16 steps are left, which take about \d+ s", caplog.text)
    before, after = rows(tmp_path / "run" / "scores.csv")
    for name, row in (("before", before), ("after", after)):
        expected = f"{name}: accuracy {row['natural']:.3f}, {row['x0']:.3f} with x0 attacked; inflation"
        assert f"{expected} {row['inflation']:.3f}" in caplog.text


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
