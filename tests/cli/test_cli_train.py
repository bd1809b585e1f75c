import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from children import interruptible
from peers import images
from PIL import Image
from toys import Triplets, saved_metric

import rlpips
from rlpips.cli import main
from rlpips.data import PhotoTriplets, make_triplets
from rlpips.hub.nested import load_nested
from rlpips.hub.tensorfiles import load_tensors, read_metadata
from rlpips.training import Recipe

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(rlpips.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve triplets to train on and five to validate on."""
    root = tmp_path_factory.mktemp("data")
    Triplets(12).write(root)
    return Triplets(5, 1).write(root, "val/toy")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for k, photo in enumerate(images(9, 3, 48, 48)):
        Image.fromarray(rlpips.tensor2im(photo[None].clamp(-1, 1))).save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return saved_metric(tmp_path_factory.mktemp("start") / "random.pth")


def arguments(start, out, *more):
    fixed = ["--weights", start, "--batch", 4, "--epochs", 1, "--decay-epochs", 0, "--steps", 1]
    return [str(each) for each in ["train", *fixed, "--out", out, *more]]


def run(*given, capsys):
    status = main(arguments(*given))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_metric_is_trained_on_a_data_set(data, start, tmp_path, capsys):
    out = tmp_path / "run"
    status, printed, err = run(
        start, out, "--data", data, "--recipe", "r-lpips", "--lr", "1e-2", capsys=capsys
    )
    assert (status, err) == (0, "")  # no bar where there is no terminal
    assert printed == f"{out / 'metric.safetensors'}\n"
    metadata = read_metadata(out / "metric.safetensors")
    assert metadata["data"] == {"folder": str(data), "subsets": ["train/toy"], "count": 12}
    assert metadata["recipe"]["mode"] == "adversarial"
    assert metadata["recipe"]["lr"] == 0.01
    assert set(metadata["scores"][0]) == {"epoch", "score", "natural", "x0", "inflation"}
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert names == {
        "run.json",
        "log.csv",
        "scores.csv",
        "state.safetensors",
        "samples",
        "metric.safetensors",
    }
    assert (
        main(
            [
                "distance",
                *[str(data / "2afc/val/toy/ref/000000.png")] * 2,
                "--weights",
                str(out / "metric.safetensors"),
            ]
        )
        == 0
    )


def test_a_metric_is_trained_on_photos_that_teachers_judge(data, photos, start, tmp_path, capsys):
    out = tmp_path / "run"
    more = [
        "--photos",
        photos,
        "--count",
        8,
        "--size",
        40,
        "--teachers",
        start,
        "--distill",
        1,
        "--validation",
        data,
    ]
    assert run(start, out, *more, capsys=capsys)[0] == 0
    assert len(list((out / "teachers").iterdir())) == 1
    metadata = read_metadata(out / "metric.safetensors")
    assert list(metadata["teachers"]) == [start]
    assert metadata["data"]["size"] == 40
    assert len(metadata["scores"]) == 2


def test_classical_metrics_teach(data, start, tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    for k, photo in enumerate(images(3, 3, 80, 80)):
        Image.fromarray(rlpips.tensor2im(photo[None].clamp(-1, 1))).save(photos / f"{k}.png")
    teachers = ["ms-ssim", "psnr", "piq:ssim"]
    more = ["--photos", photos, "--count", 4, "--size", 64, "--validation", data, "--teachers", *teachers]
    assert run(start, out, *more, capsys=capsys)[0] == 0
    assert list(read_metadata(out / "metric.safetensors")["teachers"]) == teachers
    distances = [np.load(file) for file in (out / "teachers").iterdir()]
    assert [each.shape for each in distances] == [(4, 2)] * 3
    assert all(each.min() > 1e-4 for each in distances)


def write_photos(folder, others=()):
    """Write twelve photos, of which some (by number) are others than usual."""
    folder.mkdir()
    for k, photo in enumerate(images(12, 3, 40, 40)):
        photo = photo.flip(-1).neg() if k in others else photo
        Image.fromarray(rlpips.tensor2im(photo[None].clamp(-1, 1))).save(folder / f"{k:02}.png")
    return folder


def trained_on(photos, start, out, *more):
    """Train on photos; return the weights as bytes, and the inflation before and after."""
    fixed = ["--photos", photos, "--teachers", start, "--count", 8, "--size", 32, "--recipe", "r-lpips"]
    assert main(arguments(start, out, *fixed, "--validation-limit", 6, *more)) == 0
    before, after = read_metadata(out / "metric.safetensors")["scores"]
    weights = {
        key: value.numpy().tobytes() for key, value in load_tensors(out / "metric.safetensors").items()
    }
    return weights, before["inflation"], after["inflation"]


def test_photos_kept_aside_or_of_another_folder_measure_and_are_not_trained_on(start, tmp_path):
    photos = write_photos(tmp_path / "photos")
    others = write_photos(tmp_path / "others", others=range(12))
    mixed = write_photos(tmp_path / "mixed", others=(0, 10))  # every tenth by name
    weights, before, after = trained_on(photos, start, tmp_path / "run")
    aside = trained_on(mixed, start, tmp_path / "aside")
    assert aside[0] == weights
    assert (aside[1] == before, aside[2] == after) == (False, False)
    rest = write_photos(tmp_path / "rest", others={*range(12)} - {0, 10})
    trained = trained_on(rest, start, tmp_path / "trained")
    assert trained[0] != weights
    assert trained[1] == before
    elsewhere = trained_on(photos, start, tmp_path / "elsewhere", "--validation", others)
    assert elsewhere[1] != before
    all_train = trained_on(mixed, start, tmp_path / "all", "--validation", others)
    assert all_train[0] != elsewhere[0]
    assert all_train[1] == elsewhere[1]


def test_triplets_of_photos_are_those_that_are_written(photos, tmp_path):
    made = make_triplets(photos, tmp_path, count=4, size=32, seed=3, labels="panel", panel=["psnr"], agree=1)
    assert made.new == 4
    written, own = rlpips.TwoAFC(tmp_path), PhotoTriplets(photos, 4, size=32, seed=3)
    assert len(own) == made.candidates == 4
    for theirs, mine in zip((written[i] for i in range(4)), (own[i] for i in range(4)), strict=True):
        for name in ("ref", "p0", "p1"):
            assert torch.equal(theirs[name], mine[name])
        assert mine["judge"].isnan().all()
        assert mine["judge"].shape == theirs["judge"].shape


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "nowhere"], "nowhere/2afc/train: there is no such folder"),
        (["--data", "DATA", "--subsets", "train/none"], "train/none: there is no such folder; there are toy"),
        (["--photos", "nowhere", "--teachers", "START"], "nowhere: there is no such folder"),
        (
            ["--photos", "PHOTOS"],
            "nobody has judged triplets made from --photos; name metrics that do with --teachers",
        ),
        (["--photos", "PHOTOS", "--size", "500", "--teachers", "START"], "8 are smaller than 500 pixels"),
        (["--data", "DATA", "--batch", "13"], "12 triplets are too few for a batch of 13"),
        (["--data", "DATA", "--recipe", "cake"], "there is no recipe 'cake'; the recipes are lpips, r-lpips"),
        (["--data", "DATA", "--validation", "nowhere"], "nowhere/2afc: there is no such folder"),
        (["--data", "DATA", "--weights", "nothing.pth"], "nothing.pth"),
        (["--data", "DATA", "--teachers", "nothing.pth"], "nothing.pth"),
        (["--data", "DATA", "--eps", "-1"], "eps=-1.0"),
        (["--data", "DATA", "--out", "OUT"], "is not empty, and holds no run"),
    ],
)
def test_errors_are_one_line(data, photos, start, tmp_path, capsys, more, message):
    (tmp_path / "OUT").mkdir()
    (tmp_path / "OUT" / "letters.txt").touch()
    places = {"DATA": data, "PHOTOS": photos, "START": start, "OUT": tmp_path / "OUT"}
    status, out, err = run(start, tmp_path / "run", *(places.get(each, each) for each in more), capsys=capsys)
    assert (status, out) == (1, "")
    assert message in err
    assert err.startswith("rlpips: error: ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run" / "metric.safetensors").exists()


def test_help_explains_every_field_of_a_recipe_without_torch():
    code = (
        "import sys\n"
        "from rlpips.cli import main\n"
        "try:\n"
        "    main(['train', '--help'])\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    words = re.sub(r"\s+", "", done.stdout)  # argparse breaks lines at hyphens, too
    for field in dataclasses.fields(Recipe):
        assert f"--{field.name.replace('_', '-')}" in words
        assert re.sub(r"\s+", "", field.metadata["text"]) in words


def test_every_field_of_a_recipe_is_set_by_its_option(data, start, tmp_path):
    """The options of a run with no default value give the recipe that the run records."""
    options = {
        "net": "alex", "weights": start, "mode": "adversarial", "train": "all", "dropout": False,
        "perturb": ["x0", "self"], "attack": "l2", "eps": "3/255", "eps_range": ["1/2", "3/2"], "steps": 2,
        "step_size": "1/255", "ranking": "ratio", "clean": 1.5, "distill": 0.25, "distill_attacked": 0.125,
        "inflation": 2.0, "lr": 2e-4, "head_lr": 3.0, "bias_lr": 4.0, "beta1": 0.75, "weight_decay": 0.5,
        "clip": 7.0, "schedule": "cosine", "warmup": 1, "epochs": 1, "decay_epochs": 1, "minutes": "1/600",
        "batch": 6, "ema": 0.5, "symmetries": True, "precision": "bfloat16", "patience": 3, "seed": 5,
        "pixels": 2, "floors": 0.25, "margin": 1.5, "stadv": 0.5,
    }  # fmt: skip
    assert set(options) == {field.name for field in dataclasses.fields(Recipe)}
    given = ["train", "--data", data, "--out", tmp_path / "run", "--teachers", start]
    for name, value in options.items():
        if isinstance(value, bool):
            given.append(f"--{'' if value else 'no-'}{name}")
        else:
            values = value if isinstance(value, list) else [value]
            given += ["--" + name.replace("_", "-"), *values]
    assert main([str(each) for each in given]) == 0
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    expected = {**options, "eps": 3 / 255, "eps_range": [0.5, 1.5], "step_size": 1 / 255, "minutes": 1 / 600}
    assert recorded == expected


def test_a_run_that_diverged_is_left_by_the_way_that_its_error_names(data, start, tmp_path, capsys):
    decays = ["--data", data, "--train", "all", "--weight-decay", 11000, "--recipe", "r-lpips"]
    more = [*decays, "--epochs", 8, "--validation-limit", 2]
    # the decay of a step, lr times this, turns weights around and makes them ten times as large
    status, _, err = run(start, tmp_path / "run", *more, "--lr", 1e-3, capsys=capsys)
    assert status == 1
    kept = tmp_path / "run" / "state.safetensors"
    assert re.fullmatch(
        rf"rlpips: error: step \d+: LPIPS gives NaN for example \d; {kept} keeps an earlier step\. Go on from "
        rf"it in another folder, with a lower lr \(--lr 0.0001 --weights {kept}\); .*\n",
        err,
    )
    status, _, err = run(start, tmp_path / "run", *more, "--lr", 1e-4, capsys=capsys)
    assert status == 1
    assert "recipe.lr was 0.001 and is now 0.0001. Use the same recipe" in err
    assert err.endswith(f"or another folder (--weights {kept} begins with its metric)\n")
    assert run(kept, tmp_path / "lower", *more, "--lr", 1e-4, capsys=capsys)[0] == 0
    ended, began = ((tmp_path / name / "scores.csv").read_text().splitlines() for name in ("run", "lower"))
    assert began[1].split(",")[1:] == ended[-1].split(",")[1:] != ended[1].split(",")[1:]
    assert len(began) == 10


def test_a_run_that_was_killed_or_interrupted_goes_on_to_the_same_weights(data, start, tmp_path):
    more = ["--data", data, "--mode", "adversarial", "--train", "all", "--perturb", "x0", "ref", "--ema", "0.9",
            "--symmetries", "--patience", "50", "--lr", "1e-3", "--epochs", "6", "--eps-range", "0.5", "1",
            "--validation-limit", "2"]  # fmt: skip

    def command(out):
        return [sys.executable, "-m", "rlpips", *arguments(start, out, *more)]

    def stopped_when_there_is_a_new(file, by):
        before = file.stat().st_mtime_ns if file.exists() else 0
        process = subprocess.Popen(
            command(file.parent), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
        )
        while not file.exists() or file.stat().st_mtime_ns == before:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(by)
        err = process.communicate(timeout=60)[1]
        assert not (file.parent / "metric.safetensors").exists()
        return process.returncode, err.splitlines()[-1:]

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    subprocess.run(command(whole), env=ENVIRONMENT, check=True, timeout=300)
    stopped_when_there_is_a_new(resumed / "run.json", signal.SIGKILL)
    assert not (resumed / "state.safetensors").exists()
    stopped_when_there_is_a_new(resumed / "state.safetensors", signal.SIGKILL)
    told = stopped_when_there_is_a_new(resumed / "state.safetensors", signal.SIGINT)
    assert told == (130, ["rlpips: interrupted; run the same command to go on"])
    assert load_nested(resumed / "state.safetensors")["step"] >= 6  # an epoch has three
    done = subprocess.run(command(resumed), env=ENVIRONMENT, check=True, timeout=300, capture_output=True)
    assert done.stdout.decode() == f"{resumed / 'metric.safetensors'}\n"
    one, other = (out / "metric.safetensors" for out in (whole, resumed))
    assert read_metadata(one) == read_metadata(other)
    assert one.read_bytes() == other.read_bytes()
    for table in ("log.csv", "scores.csv"):
        assert (whole / table).read_text() == (resumed / table).read_text()
