import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import lpips
import pytest
import torch
from peers import hushed
from toys import Triplets, random_metric
from trained import changed, rows, tensors

import rlpips
from rlpips.evaluation import accuracy, measure_2afc
from rlpips.hub.digests import tensors_digest
from rlpips.hub.nested import load_nested
from rlpips.hub.tensorfiles import read_metadata
from rlpips.training import Recipe, Settings, train


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


def test_a_run_repeats(recipe, tmp_path):
    recipe = dataclasses.replace(recipe, mode="adversarial", perturb=("x0", "ref"), dropout=True, train="all")
    states = []
    for name in ("one", "other"):
        torch.manual_seed(len(states))  # nothing is drawn from the global generator
        states.append(tensors(train(recipe, Triplets(), tmp_path / name)))
    assert not changed(*states)
    other = tensors(train(dataclasses.replace(recipe, seed=1), Triplets(), tmp_path / "seed"))
    assert changed(states[0], other)


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


def test_two_processes_train_as_one(start, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\n"
        "from toys import Triplets\n"
        "from rlpips.system.processes import torchrun_group\n"
        "from rlpips.training import Recipe\n"
        "from rlpips.training import train\n"
        "torch.set_num_threads(1)\n"
        "recipe = Recipe(weights=sys.argv[1], mode='adversarial', perturb=('x0', 'self'), inflation=1.0, clean=1.0,\n"
        "                steps=2, batch=8, epochs=3, decay_epochs=0, train='all', dropout=False, distill=0.5,\n"
        "                ema=0.5)\n"
        "def teacher(a, b):\n"
        "    return (a - b).square().mean(dim=(1, 2, 3))\n"
        "with torchrun_group('cpu'):\n"
        "    train(recipe, Triplets(), sys.argv[2], validation=Triplets(5, 1), teachers={'plain': teacher})\n"
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
