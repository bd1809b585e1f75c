import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peers import images, peers
from PIL import Image

import rlpips
from rlpips.attacks import PGD, SSA
from rlpips.cli import main
from rlpips.data import DISTORTIONS as EVERY
from rlpips.evaluation.image_changes import STRENGTH
from rlpips.evaluation.robustness_measurement import robustness
from rlpips.hub.digests import tensors_digest

EPS = 4 / 255
DISTORTIONS = {name: EVERY[name] for name in ("gaussian-blur", "gaussian-noise", "jpeg", "hue")}
ATTACKS = {"linf:4/255:3": PGD("linf", EPS, 3), "l2:0.5:2": PGD("l2", 0.5, 2)}


@pytest.fixture(autouse=True, scope="module")
def few_distortions():
    """All of them take a second for each run, and say no more about what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlpips.evaluation.image_changes.DISTORTIONS", DISTORTIONS)
        yield


def plain(x, y):
    """A metric of somebody else: a function, not a module."""
    return (x - y).diff(dim=-1).abs().mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five images larger than the crops, one too small, and a text."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(5):
        data = (images(1, 3, 40 + i, 50, seed=i)[0].clamp(-1, 1) + 1) * 127.5
        Image.fromarray(data.byte().movedim(0, 2).contiguous().numpy()).save(folder / f"{i}.png")
    Image.new("RGB", (50, 31)).save(folder / "small.png")
    (folder / "text.png").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def metrics():
    return {"random": peers("alex")[0], "plain": plain}


def report(metrics, folder, **options):
    options = {"batch_size": 2, "size": 32, "seed": 3, **options}
    return robustness(metrics, sorted(folder.iterdir()), ATTACKS, **options)


@pytest.fixture(scope="module")
def found(metrics, folder, tmp_path_factory):
    saved = tmp_path_factory.mktemp("worst")
    return report(metrics, folder, save_images=saved), saved


def test_every_distance_is_there(found, metrics):
    report, _ = found
    assert report.images == [f"{i}.png" for i in range(5)]
    assert list(report.attacked) == [(source, attack) for source in metrics for attack in ATTACKS]
    for by_metric in report.attacked.values():
        assert list(by_metric) == list(metrics)
        assert all(values.shape == (5,) and np.isfinite(values).all() for values in by_metric.values())
    for metric in metrics:
        assert report.augmented[metric].shape == (10,)
        assert list(report.distorted[metric]) == list(DISTORTIONS)
        assert report.ordinary(metric).shape == (5 * len(DISTORTIONS),)
        assert (report.ordinary(metric) >= 0).all()
        assert (report.augmented[metric] > 0).all()


def test_an_attack_hurts_the_metric_it_was_made_for_most(found, metrics):
    report, _ = found
    for metric, other in (("random", "plain"), ("plain", "random")):
        for attack in ATTACKS:
            white_box, transferred = (report.attacked[source, attack][metric] for source in (metric, other))
            assert (white_box > transferred).all()


def test_inflation_is_a_ratio_of_medians(found):
    report, _ = found
    ordinary = np.median(np.concatenate([report.distorted["random"][name] for name in DISTORTIONS]))
    for source in ("random", "plain"):
        attacked = np.median(report.attacked[source, "l2:0.5:2"]["random"])
        assert report.inflation("random", "l2:0.5:2", source) == pytest.approx(attacked / ordinary)
    assert report.inflation("random", "l2:0.5:2") == report.inflation("random", "l2:0.5:2", "random")


def test_distances_are_those_of_the_metric(found, folder, metrics):
    report, _ = found
    crop = rlpips.load_image(folder / "1.png")[4:36, 9:41]
    distorted = DISTORTIONS["gaussian-blur"](crop, STRENGTH, np.random.default_rng(0))  # which draws nothing
    x, y = (rlpips.im2tensor(each) for each in (crop, distorted))
    for name, metric in metrics.items():
        assert report.distorted[name]["gaussian-blur"][1] == pytest.approx(metric(x, y).item(), abs=1e-6)


def test_files_that_do_not_fit_are_skipped_and_named(found, folder):
    report, _ = found
    assert list(report.skipped) == [str(folder / "small.png"), str(folder / "text.png")]
    assert report.skipped[str(folder / "small.png")] == (
        "31 x 50 pixels are too few for a crop of 32 x 32 (height x width)"
    )
    assert "not an image" in report.skipped[str(folder / "text.png")]


@pytest.mark.skipif(
    not Path("/proc/self/mem").exists(), reason="needs a file that gives errors when it is read"
)
def test_an_image_that_cannot_be_read_now_is_not_left_out_of_the_sample(folder, tmp_path):
    failing = tmp_path / "1.png"
    failing.symlink_to("/proc/self/mem")  # whose first bytes give an I/O error
    files = [folder / "0.png", failing, folder / "2.png"]
    with pytest.raises(OSError, match=f"{failing}: cannot be read: Input/output error"):
        robustness({"plain": plain}, files, ATTACKS, size=32)
    failing.unlink()
    with pytest.raises(FileNotFoundError, match=f"{failing}: there is no such file"):
        robustness({"plain": plain}, files, ATTACKS, size=32)


def test_results_repeat_and_do_not_depend_on_batches(found, metrics, folder):
    first, _ = found
    again, whole, other = (
        report(metrics, folder, **options).to_json() for options in ({}, {"batch_size": 5}, {"seed": 4})
    )
    first = first.to_json()
    assert again == first

    def numbers(document):
        attacked = [value for row in document["attacked"] for value in row["distances"]]
        return np.array(attacked + [v for m in document["metrics"].values() for v in m["augmented"]])

    assert np.allclose(numbers(whole), numbers(first), rtol=1e-4, atol=1e-6)
    for metric in metrics:
        one, two, three = (each["metrics"][metric] for each in (first, whole, other))
        for name in DISTORTIONS:
            assert np.allclose(one["distorted"][name], two["distorted"][name], rtol=1e-5, atol=1e-6)
        assert one["augmented"] != three["augmented"]
        assert one["distorted"]["gaussian-noise"] != three["distorted"]["gaussian-noise"]


def test_global_randomness_is_left_alone(metrics, folder):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    robustness({"plain": plain}, [folder / "0.png"], {"a": PGD("linf", EPS, 1)}, size=32)
    assert (torch.rand(1), np.random.rand()) == expected  # noqa: NPY002


def test_the_worst_examples_are_kept_and_saved(found, folder):
    report, saved = found
    for (source, attack), examples in report.worst.items():
        values = report.attacked[source, attack][source]
        assert [value for _, value in examples] == sorted(values, reverse=True)
        assert dict(examples) == dict(zip(report.images, values, strict=True))
    files = sorted(path.relative_to(saved).as_posix() for path in saved.rglob("*.png"))
    assert len(files) == 4 * 5
    name, _ = report.worst["random", "linf:4/255:3"][0]
    path = saved / "random" / "linf-4-255-3" / f"1-{name}"
    assert f"random/linf-4-255-3/1-{name}" in files
    picture = rlpips.load_image(path)
    assert picture.shape == (32, 96, 3)
    i = int(name[0])
    original = rlpips.load_image(folder / name)[(8 + i) // 2 : (8 + i) // 2 + 32, 9:41]
    assert np.array_equal(picture[:, :32], original)
    change = picture[:, 32:64].astype(int) - original
    assert 0 < abs(change).max() <= 4
    assert abs(picture[:, 64:].astype(int) - 127.5).max() > 126


def test_labels_become_names_of_files_that_differ(tmp_path, folder):
    metrics = {"a/b": plain, "A:b": plain}
    robustness(metrics, [folder / "0.png"], {"..": PGD("linf", EPS, 1)}, size=32, save_images=tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert files == {"a-b/unnamed/1-0.png", "A-b-again/unnamed/1-0.png"}


def test_json_holds_what_names_the_run(found, metrics):
    report, _ = found
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (document["seed"], document["settings"]["size"]) == (3, 32)
    assert (document["rlpips"], document["torch"]) == (rlpips.__version__, torch.__version__)
    assert document["digests"]["random"] == tensors_digest(metrics["random"].state_dict())
    assert document["digests"]["plain"] is None
    assert document["settings"]["attacks"]["linf:4/255:3"]["kind"] == "PGD"
    assert document["settings"]["attacks"]["linf:4/255:3"]["eps"] == EPS
    assert len(document["attacked"]) == 2 * 2 * 2


def test_progress_reaches_its_end(folder):
    seen = []
    robustness(
        {"plain": plain}, [folder / f"{i}.png" for i in range(3)], {"a": PGD("linf", EPS, 1)},
        size=32, batch_size=2, limit=3, progress=lambda *numbers: seen.append(numbers),
    )  # fmt: skip
    assert seen == [(2, 6), (3, 6), (5, 6), (6, 6)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"metrics": {}}, ValueError, "at least one metric"),
        ({"attacks": {}}, ValueError, "at least one metric"),
        ({"attacks": {"mine": SSA("linf", EPS, 2)}}, ValueError, "'mine' needs triplets"),
        ({"attacks": {"mine": PGD("linf", EPS, 2, bounds=(0, 1))}}, ValueError, r"'mine' must have bounds \(-1, 1\)"),
        ({"size": 100}, rlpips.ImageError, "there is no image to measure; .*0.png: 40 x 50 pixels are too few"),
        ({"images": []}, rlpips.ImageError, "there is no image to measure$"),
        ({"metrics": {"a": peers("alex")[0]}, "size": 20}, ValueError, "at least 31 x 31"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(folder, change, error, message):
    arguments = {"metrics": {"plain": plain}, "images": [folder / "0.png"], "attacks": ATTACKS, **change}
    with pytest.raises(error, match=message):
        robustness(**arguments)


def test_missing_torchvision_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with pytest.raises(rlpips.MissingExtraError, match=r"rlpips\[evaluation\]"):
        robustness({"plain": plain}, [folder / "0.png"], ATTACKS)


def test_nan_of_one_metric_is_told_and_leaves_the_others_their_numbers(folder):
    third = rlpips.im2tensor(rlpips.load_image(folder / "2.png")[5:37, 9:41])

    def broken(x, y):
        return plain(x, y).masked_fill((y - third).abs().amax(dim=(1, 2, 3)) < 1e-5, torch.nan)

    alone = report({"plain": plain}, folder)
    for batch_size in (1, 5):
        seen = report({"plain": plain, "broken": broken}, folder, batch_size=batch_size)
        for attack in ATTACKS:
            fine = seen.attacked["plain", attack]["plain"]
            np.testing.assert_allclose(fine, alone.attacked["plain", attack]["plain"], rtol=1e-4)
            for source, metric in (("plain", "broken"), ("broken", "broken"), ("broken", "plain")):
                assert np.isnan(seen.attacked[source, attack][metric]).tolist() == [i == 2 for i in range(5)]
            assert np.isnan(seen.inflation("broken", attack))
            assert seen.inflation("plain", attack) == pytest.approx(
                alone.inflation("plain", attack), rel=1e-4
            )
        assert list(seen.undefined) == ["broken"]
        assert seen.undefined["broken"].startswith("broken gives NaN for 2.png (")
        json.dumps(seen.to_json(), allow_nan=False)


# --- the command --------------------------------------------------------------------------------------------


def test_the_command_end_to_end(real_weights, shared, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rlpips.evaluation.image_changes.DISTORTIONS", EVERY)
    report, plot, saved = tmp_path / "report.json", tmp_path / "figure.png", tmp_path / "worst"
    attack = "linf:4/255:10"
    metric = rlpips.LPIPS()
    status = main(
        [
            "evaluate", "robustness", "--images", str(shared / "images" / "photos"), "--limit", "6",
            "--weights", "standard", "--attack", attack, "-o", str(report), "--plot", str(plot),
            "--save-images", str(saved),
        ]
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    document = json.loads(report.read_text())
    (row,) = document["attacked"]
    assert (row["source"], row["attack"], row["metric"]) == ("standard", attack, "standard")
    assert row["inflation"] > 1
    assert document["digests"]["standard"] == tensors_digest(metric.state_dict())
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["attacked", "attack", "standard", "inflation"]
    assert lines[1] == ["standard", attack, f"{row['median']:.4f}", f"{row['inflation']:.3f}"]
    assert lines[3] == ["-", "distortions", f"{document['metrics']['standard']['ordinary_median']:.4f}"]
    assert out.splitlines()[-1].startswith("6 images")
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert len(list(saved.rglob("*.png"))) == 5


def test_weights_may_name_their_net_and_skipped_files_are_told(folder, weights, capsys):
    options = ["--size", "32", "--attack", "stadv:0.5:1", "--seed", "5"]
    names = [weights, f"alex:{weights}"]
    status = main(["evaluate", "robustness", "--images", str(folder), "--weights", *names, *options])
    out, err = capsys.readouterr()
    assert status == 1
    assert f"rlpips: {folder / 'small.png'}: 31 x 50 pixels are too few" in err
    assert len(err.splitlines()) == 2
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][2:4] == names
    assert [line[0] for line in lines[1:3]] == names
    assert lines[1][2] == lines[1][3]  # the same metric under two names


def test_budgets_and_the_worst_of_attacks(folder, weights, tmp_path, monkeypatch, capsys):
    (tmp_path / "gradients.py").write_text(
        "def metric(): return lambda x, y: (x - y).diff(dim=-1).abs().mean(dim=(1, 2, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    metrics = [weights, "gradients:metric"]

    def run(name, *attacks):
        output, plot = tmp_path / f"{name}.json", tmp_path / f"{name}.png"
        options = ["--size", "32", "--batch-size", "5", "-o", str(output), "--plot", str(plot)]
        images = ["--images", str(folder), "--limit", "5", "--weights", *metrics]
        assert main(["evaluate", "robustness", *images, *options, "--attack", *attacks]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert plot.read_bytes().startswith(b"\x89PNG")
        document = json.loads(output.read_text())
        return {(r["source"], r["attack"], r["metric"]): r for r in document["attacked"]}, document, out

    both, document, out = run("both", "linf:2/255,4/255:2", "apgd-linf:4/255:2x2")
    worst = "worst of linf:4/255"
    singles = ["linf:2/255:2", "linf:4/255:2", "apgd-linf:4/255:2x2"]
    assert list(document["settings"]["attacks"]) == [*singles, worst]
    assert document["settings"]["attacks"][worst] == {"kind": "WorstOf", "attacks": singles[1:]}
    alone = {**run("first", "linf:2/255:2")[0], **run("second", "linf:4/255:2")[0]}
    assert {key: both[key] for key in alone} == alone
    for source in metrics:
        for metric in metrics:
            distances = [both[source, attack, metric]["distances"] for attack in singles[1:]]
            row = both[source, worst, metric]
            assert row["distances"] == np.max(distances, axis=0).tolist()
            assert row["median"] == np.median(row["distances"])
            assert row["inflation"] == pytest.approx(
                row["median"] / document["metrics"][metric]["ordinary_median"]
            )
    rows = [re.split(r"\s{2,}", line) for line in out.splitlines()]
    assert [row[1] for row in rows if row[0] in metrics] == 2 * [*singles, worst]


def test_an_interrupted_report_goes_on_where_it_stopped(folder, tmp_path, counting, capsys):
    def run(name):
        files = ["-o", str(tmp_path / f"{name}.json"), "--save-images", str(tmp_path / name)]
        attacks = ["linf:4/255:1", "linf:4/255:2"]
        return main(
            ["evaluate", "robustness", "--images", str(folder), "--weights", "counting:metric", "--size", "32",
             "--attack", *attacks, *files]
        )  # fmt: skip

    assert run("whole") == 1  # two files are no images
    everything = len(counting.calls)
    counting.begin(stop=everything - 1)  # in the second attack
    assert run("resumed") == 130
    assert not (tmp_path / "resumed.json").exists()
    counting.begin()
    assert run("resumed") == 1
    assert 0 < len(counting.calls) < everything / 2
    assert (tmp_path / "resumed.json").read_text() == (tmp_path / "whole.json").read_text()
    pictures = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.png")}
        for name in ("whole", "resumed")
    ]
    assert len(pictures[0]) == 10
    assert pictures[0] == pictures[1]
    assert not list(tmp_path.glob("*.parts"))
    capsys.readouterr()


def test_two_processes_write_the_report_of_one(folder, weights, tmp_path):
    group = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(rlpips.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    reports = []
    for name, launcher in (("one", []), ("two", group)):
        (tmp_path / name).mkdir()
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "rlpips", "evaluate", "robustness", "--images", str(folder),
             "--limit", "5", "--size", "32", "--batch-size", "2", "--weights", weights, "--attack", "linf:4/255:2",
             "-o", "report.json", "--save-images", "worst"],
            capture_output=True, text=True, timeout=180, env=environment, cwd=tmp_path / name,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        contents = {path.relative_to(tmp_path / name): path.read_bytes() for path in files}
        reports.append((done.stdout, contents))
    assert reports[0] == reports[1]
    assert len(reports[0][1]) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attack", "linf:4/255"], "is not an attack; write NAME:EPS:STEPS"),
        (["--attack", "ssa:4/255:3"], "needs triplets"),
        (["--plot", "figure.jpg"], "must end in .png or .pdf"),
        (["-o", "nowhere/report.json"], "its folder does not exist"),
        (["--seed", "-1"], "-1 is negative"),
        (["--size", "0"], "0 is not a positive number"),
    ],
)
def test_wrong_usage_ends_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "robustness", "--images", ".", *arguments])
    assert message in capsys.readouterr().err


def test_errors_are_one_line_and_end_with_1(folder, weights, capsys):
    for arguments, message in (
        (["--images", "nowhere"], "nowhere: there is no such folder"),
        (["--images", str(folder), "--weights", weights, weights], "twice"),
        (["--images", str(folder), "--weights", f"vgg:{weights}"], "not a checkpoint for net='vgg'"),
        (["--images", str(folder), "--weights", weights, "--size", "90"], "there is no image to measure"),
    ):
        assert main(["evaluate", "robustness", *arguments]) == 1
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err
        assert len(err.splitlines()) == 1


def test_help_needs_no_torch():
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['numpy'] = sys.modules['PIL'] = sys.modules['matplotlib'] = None\n"
        "from rlpips.cli import main\n"
        "main(['evaluate', 'robustness', '--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: rlpips evaluate robustness")
