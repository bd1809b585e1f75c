import dataclasses
import io
import re
import sys

import pytest
from toys import Triplets, random_metric
from trained import rows, tensors

import rlpips
from rlpips.training import Settings, train


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


def test_a_short_run_changes_the_metric_and_is_warned_of(recipe, tmp_path, caplog):
    recipe = dataclasses.replace(recipe, batch=2, warmup=50, ema=0.998, schedule="cosine", lr=1e-2)
    first = random_metric().state_dict()
    after = tensors(train(recipe, Triplets(), tmp_path / "run"))
    assert "this run takes 8 steps, and a metric improves little in fewer than some hundreds" in caplog.text
    plain = dataclasses.replace(recipe, warmup=0, ema=0.0)
    free = tensors(train(plain, Triplets(), tmp_path / "plain"))
    key = "lin0.model.1.weight" if "lin0.model.1.weight" in first else "lin0.model.0.weight"
    assert (after[key] - first[key]).abs().mean() > 0.3 * (free[key] - first[key]).abs().mean()


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
