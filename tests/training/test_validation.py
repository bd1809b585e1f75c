import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from toys import SIZE, Triplets, random_metric
from trained import changed, rows, tensors

import rlpips
from rlpips.attacks import Inflate
from rlpips.evaluation import accuracy, measure_2afc
from rlpips.training import Recipe, Settings, train


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
