import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from peers import images
from PIL import Image

import rlpips
from rlpips.attacks import PGD
from rlpips.cli import main
from rlpips.evaluation import disagreement, jnd_score, margin, measure_2afc, measure_jnd, two_afc_score
from rlpips.evaluation.result_cache import Measurements, ResultCache

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(rlpips.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two subsets of seven triplets, and one of six pairs, of noise."""
    root = tmp_path_factory.mktemp("data")
    for subset in ("one", "two"):
        for i in range(7):
            ref = 0.8 * images(1, 3, 40, 40, seed=i).clamp(-1, 1)
            for name, strength in (("ref", 0.0), ("p0", 0.06), ("p1", 0.09)):
                path = root / "2afc" / "val" / subset / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noisy = (ref + strength * images(1, 3, 40, 40, seed=i + 10 + len(subset))).clamp(-1, 1)
                Image.fromarray(rlpips.tensor2im(noisy)).save(path)
            path = root / "2afc" / "val" / subset / "judge" / f"{i}.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, np.array([0.2]))
    for i in range(6):
        for name in ("p0", "p1"):
            path = root / "jnd" / "val" / "one" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shade = images(1, 3, 40, 40, seed=i) * (1 if name == "p0" else 1 - 0.1 * i)
            Image.fromarray(rlpips.tensor2im(shade.clamp(-1, 1))).save(path)
        path = root / "jnd" / "val" / "one" / "same" / f"{i}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.array([1 - i / 6]))
    return root


def run(*arguments, capsys):
    status = main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_2afc_reports_every_case_with_every_number(data, weights, capsys, tmp_path):
    output = tmp_path / "report.json"
    status, out, err = run(
        "2afc", "--data", data, "--weights", weights, "--attack", "linf:4/255:2", "--perturb", "x0", "ref",
        "-o", output, capsys=capsys,
    )  # fmt: skip
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["metric", "subset", "attack", "perturb"]
    assert len(lines) == 1 + 2 * 3
    report = json.loads(output.read_text())
    assert not list(tmp_path.glob("*.parts"))
    assert report["digests"][weights].startswith("sha256:")
    assert (report["seed"], report["rlpips"], report["torch"]) == (0, rlpips.__version__, torch.__version__)
    assert report["python"] == platform.python_version()
    assert (report["settings"]["attack"], report["settings"]["perturb"]) == (["linf:4/255:2"], ["x0", "ref"])
    metric = rlpips.LPIPS(weights=weights)
    for record in report["results"]:
        dataset = rlpips.TwoAFC(data, [record["subset"]])
        attack = None if record["attack"] == "none" else PGD("linf", 4 / 255, 2)
        perturb = "x0" if attack is None else record["perturb"]
        d0, d1, judge = measure_2afc(metric, dataset, attack, perturb)
        np.testing.assert_allclose(record["d0"], d0, atol=1e-6)
        np.testing.assert_allclose(record["d1"], d1, atol=1e-6)
        assert record["2AFC"]["value"] == pytest.approx(two_afc_score(d0, d1, judge).mean())
        assert record["2AFC"]["low"] <= record["2AFC"]["value"] <= record["2AFC"]["high"]
        assert record["2AFC"]["count"] == 7
        assert f"{record['2AFC']['value']:.3f} [" in out


def test_jnd(data, weights, capsys):
    status, out, _ = run("jnd", "--data", data, "--weights", weights, "--subsets", "val/one", capsys=capsys)
    assert status == 0
    expected = jnd_score(*measure_jnd(rlpips.LPIPS(weights=weights), rlpips.JND(data)))
    assert f"{expected:.3f} [" in out.splitlines()[1]


def test_limits_and_subsets(data, weights, capsys):
    _, out, _ = run(
        "2afc", "--data", data, "--weights", weights, "--subsets", "val/two", "--limit", 3, capsys=capsys
    )
    assert len(out.splitlines()) == 2
    assert out.splitlines()[1].split()[1] == "val/two"
    assert out.splitlines()[1].split()[-1] == "3"


def test_a_metric_of_ones_own_is_a_function_of_a_module(data, capsys, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def metric():\n    return lambda x, y: (x - y).square().mean(dim=(1, 2, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    status, out, _ = run(
        "2afc", "--data", data, "--weights", "mine:metric", "--attack", "linf:4/255:2", capsys=capsys
    )
    assert status == 0
    assert len(out.splitlines()) == 5
    status, _, err = run("2afc", "--data", data, "--weights", "mine:nothing", capsys=capsys)
    assert status == 1
    assert "'mine:nothing' is not a metric" in err


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A working folder of modules, which are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_modules_of_the_working_folder_come_last_and_only_for_factories(data, capsys, modules, monkeypatch):
    monkeypatch.setenv("RLPIPS_HOME", str(modules / "empty"))
    spy = "open('imported', 'a').write(__name__ + ' ')\ndef {}(): return lambda x, y: (x - y).square()\n"
    for name in ("vgg16", "alex", "colorsys", "own_metric"):
        (modules / f"{name}.py").write_text(spy.format("standard"))
    path = list(sys.path)
    sys.modules.pop("colorsys", None)
    for text, found in (
        ("vgg16:standard", ""),
        ("alex:nothing", ""),
        ("colorsys:standard", "has no standard"),
    ):
        status, _, err = run("2afc", "--data", data, "--weights", text, capsys=capsys)
        assert status == 1
        assert found in err
        assert not (modules / "imported").exists()
        assert sys.path == path
    assert run("2afc", "--data", data, "--weights", "own_metric:standard", capsys=capsys)[0] == 0
    assert (modules / "imported").read_text() == "own_metric "
    assert sys.path == path


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def make():\n    raise RuntimeError('no\\nluck')", "RuntimeError: no luck"),
        ("def make():\n    return {}.missing", "AttributeError: 'dict' object has no attribute 'missing'"),
        ("def make():\n    return None", "it returned None, which cannot be called"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("make = 5", "TypeError: 'int' object is not callable"),
        ("def make(", "SyntaxError"),
    ],
)
def test_a_factory_that_fails_is_named_in_one_line(data, capsys, modules, code, message):
    (modules / "failing_metric.py").write_text(code)
    status, out, err = run("2afc", "--data", data, "--weights", "failing_metric:make", capsys=capsys)
    assert (status, out) == (1, "")
    assert err.startswith("rlpips: error: 'failing_metric:make' is not a metric: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_metric_that_gives_nan_leaves_the_others_their_report(data, capsys, modules):
    (modules / "nan_metric.py").write_text(
        "def fine(): return lambda x, y: (x - y).square().mean(dim=(1, 2, 3))\n"
        "def broken(): return lambda x, y: (x - y).square().mean(dim=(1, 2, 3)) * float('nan')\n"
    )
    status, out, err = run(
        "2afc", "--data", data, "--weights", "nan_metric:broken", "nan_metric:fine", "--subsets", "val/one",
        "--attack", "linf:4/255:1", "-o", "r.json", "--plot", "p.png", "--save-images", "worst", capsys=capsys,
    )  # fmt: skip
    assert status == 1
    assert err.splitlines() == [
        "rlpips: nan_metric:broken: broken.<locals>.<lambda> gives NaN for val/one/0",
        "rlpips: nan_metric:broken: broken.<locals>.<lambda> gives NaN for val/one/0",
    ]
    assert out.count("not defined") == 4
    results = json.loads((modules / "r.json").read_text())["results"]
    by_metric = {
        name: [r for r in results if r["metric"] == f"nan_metric:{name}"] for name in ("fine", "broken")
    }
    assert all(len(record["d0"]) == 7 for record in by_metric["fine"])
    assert [record["2AFC"] for record in by_metric["broken"]] == [None, None]
    assert (modules / "p.png").exists()
    assert not (modules / "r.json.parts").exists()
    status, out, err = run(
        "robustness", "--images", data / "2afc" / "val" / "one" / "ref", "--weights", "nan_metric:broken",
        "nan_metric:fine", "--size", 32, "--attack", "linf:4/255:1", "-o", "s.json", "--limit", 2, capsys=capsys,
    )  # fmt: skip
    assert status == 1
    assert err.startswith("rlpips: nan_metric:broken gives NaN for 0.png (")
    assert len(err.splitlines()) == 1
    assert "not defined" in out
    report = json.loads((modules / "s.json").read_text())
    assert report["metrics"]["nan_metric:broken"]["ordinary_median"] is None
    assert report["metrics"]["nan_metric:fine"]["ordinary_median"] > 0


def test_a_score_that_is_not_defined_is_null_and_the_report_is_kept(data, capsys, weights, tmp_path):
    shutil.copytree(data / "jnd", tmp_path / "jnd")
    for path in (tmp_path / "jnd").rglob("*.npy"):
        np.save(path, np.array([0.0]))  # nobody saw a pair as the same
    output = tmp_path / "r.json"
    status, out, err = run("jnd", "--data", tmp_path, "--weights", weights, "-o", output, capsys=capsys)
    assert (status, err) == (0, "")
    assert "not defined" in out
    (record,) = json.loads(output.read_text())["results"]
    assert record["mAP"] == {"value": None, "low": None, "high": None, "count": 6}
    assert len(record["d"]) == 6


def test_the_table_is_printed_where_the_file_cannot_be_written(data, capsys, weights, tmp_path, monkeypatch):
    def full(prefix, dir):
        if prefix == ".r.json.":
            raise OSError(errno.ENOSPC, "No space left on device")
        return mkstemp(prefix=prefix, dir=dir)

    mkstemp = tempfile.mkstemp
    monkeypatch.setattr(tempfile, "mkstemp", full)
    status, out, err = run(
        "jnd", "--data", data, "--weights", weights, "-o", tmp_path / "r.json", capsys=capsys
    )
    assert status == 1
    assert "mAP" in out
    assert "No space left" in err


def test_what_else_lies_in_the_folder_of_results_stays(data, capsys, weights, tmp_path):
    parts = tmp_path / "r.json.parts"
    (parts / "more").mkdir(parents=True)
    (parts / "notes.txt").write_text("mine")
    (parts / "results.npz").write_text("mine")
    (parts / ".0123456789abcdef.npz.abc_1").write_text("left by a run that was killed")
    arguments = ["jnd", "--data", data, "--weights", weights, "-o", tmp_path / "r.json"]
    assert run(*arguments, capsys=capsys)[0] == 0
    assert {path.name for path in parts.iterdir()} == {"more", "notes.txt", "results.npz"}
    shutil.rmtree(parts)
    parts.write_text("a file")
    status, _, err = run(*arguments, capsys=capsys)
    assert status == 1
    assert "r.json.parts is in the way" in err
    assert parts.read_text() == "a file"


def test_no_results_are_kept_beside_a_device_and_those_of_a_link_beside_its_file(tmp_path):
    assert ResultCache(Path(os.devnull))._folder is None
    (tmp_path / "real.json").write_text("")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "link.json").symlink_to(tmp_path / "real.json")
    assert ResultCache(tmp_path / "sub" / "link.json")._folder == tmp_path.resolve() / "real.json.parts"


COUNTING = (
    "import sys\n"
    "calls = []\n"
    "def metric():\n"
    "    def measure(x, y):\n"
    "        calls.append(len(x))\n"
    "        if len(calls) == int(open(__file__ + '.stop').read()):\n"
    "            raise KeyboardInterrupt\n"
    "        return (x - y).square().mean(dim=(1, 2, 3))\n"
    "    return measure\n"
)


def example(folder, name, part):
    subset, stem = name.rsplit("/", 1)
    return folder / subset / part / f"{stem}.png"


def test_pictures_show_the_worst_examples(data, weights, capsys, tmp_path):
    figure, saved = tmp_path / "figure.png", tmp_path / "worst"
    status, _, err = run(
        "2afc", "--data", data, "--weights", weights, "--attack", "linf:4/255:2", "--perturb", "x0", "x0+x1",
        "--limit", 4, "--plot", figure, "--save-images", saved, capsys=capsys,
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert figure.read_bytes().startswith(b"\x89PNG")
    (metric,) = saved.iterdir()
    widths = {"natural": 3, "linf-4-255-2-on-x0": 5, "linf-4-255-2-on-x0+x1": 7}
    assert {path.name for path in metric.iterdir()} == set(widths)
    dataset, lpips = rlpips.TwoAFC(data), rlpips.LPIPS(weights=weights)
    indices = [0, 1, 2, 3, 7, 8, 9, 10]
    columns = measure_2afc(lpips, dataset)
    expected = sorted(indices, key=lambda i: margin(*columns)[i])[:5]
    for case, width in widths.items():
        paths = sorted((metric / case).iterdir())
        assert [path.name[0] for path in paths] == ["1", "2", "3", "4", "5"]
        if case == "natural":
            names = [
                f"{rank}-{dataset.name_of(i).replace('/', '-')}.png" for rank, i in enumerate(expected, 1)
            ]
            assert [path.name for path in paths] == names
        for path in paths:
            picture = rlpips.load_image(path).astype(int)
            assert picture.shape == (40, 40 * width, 3)
            (i,) = (i for i in indices if path.stem[2:] == dataset.name_of(i).replace("/", "-"))
            for k, part in enumerate(("ref", "p0", "p1")):
                original = rlpips.load_image(example(data / "2afc", dataset.name_of(i), part))
                assert np.array_equal(picture[:, 40 * k : 40 * k + 40], original)
            for k in range(3, width, 2):
                original = picture[:, 40 * (k - 1) // 2 :][:, :40]
                attacked, change = picture[:, 40 * k : 40 * k + 40], picture[:, 40 * k + 40 : 40 * k + 80]
                assert 0 < abs(attacked - original).max() <= 4
                assert abs(change - 127.5).max() > 126


def test_pictures_of_jnd(data, weights, capsys, tmp_path):
    figure, saved = tmp_path / "figure.pdf", tmp_path / "worst"
    status, _, err = run(
        "jnd", "--data", data, "--weights", weights, "--plot", figure, "--save-images", saved, capsys=capsys
    )
    assert (status, err) == (0, "")
    assert figure.read_bytes().startswith(b"%PDF")
    dataset = rlpips.JND(data)
    apart = disagreement(*measure_jnd(rlpips.LPIPS(weights=weights), dataset))
    first = int(np.argmax(apart))
    (path,) = saved.glob(f"*/natural/1-{dataset.name_of(first).replace('/', '-')}.png")
    assert rlpips.load_image(path).shape == (40, 120, 3)
    assert np.array_equal(
        rlpips.load_image(path)[:, :40],
        rlpips.load_image(example(data / "jnd", dataset.name_of(first), "p0")),
    )


def test_an_interrupted_report_goes_on_where_it_stopped(data, capsys, tmp_path, monkeypatch):
    (tmp_path / "counting.py").write_text(COUNTING)
    stop = tmp_path / "counting.py.stop"
    monkeypatch.syspath_prepend(tmp_path)
    output = tmp_path / "report.json"
    saved = tmp_path / "worst"
    arguments = ["2afc", "--data", data, "--weights", "counting:metric", "-o", output, "--save-images", saved]
    stop.write_text("3")  # in the second subset
    assert run(*arguments, capsys=capsys)[0] == 130
    assert not output.exists()
    assert len(list((tmp_path / "report.json.parts").iterdir())) == 1
    stop.write_text("0")
    import counting

    counting.calls.clear()
    assert run(*arguments, capsys=capsys)[0] == 0
    assert len(counting.calls) == 2  # two distances of one subset; the other was done
    resumed = json.loads(output.read_text())
    output.unlink()
    run(*arguments, capsys=capsys)
    assert json.loads(output.read_text()) == resumed


@pytest.mark.parametrize("way", ["flipped", "name", "cut", "empty"])
def test_what_a_damaged_part_held_is_measured_again(tmp_path, caplog, way):
    truth = Measurements({"d0": np.arange(9.0)}, {4: np.ones((3, 2, 2), np.float32)})
    cache = ResultCache(tmp_path / "report.json")
    assert cache.get({"seed": 0}, lambda: truth) is truth
    (path,) = (tmp_path / "report.json.parts").iterdir()
    whole = path.read_bytes()
    for damaged, warnings in (
        (
            {
                "flipped": whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
                "name": whole.replace(b"column:d0", b"column:d1"),  # zips have no checksum of names
                "cut": whole[:-1],
                "empty": b"",
            }[way],
            1,
        ),
        (whole, 0),
    ):
        path.write_bytes(damaged)
        caplog.clear()
        found = cache.get({"seed": 0}, lambda: truth)
        assert np.array_equal(found.columns["d0"], truth.columns["d0"])
        assert np.array_equal(found.images[4], truth.images[4])
        assert path.read_bytes() == whole
        assert [record.getMessage() for record in caplog.records] == [
            f"{path} is damaged; its results are measured again"
        ] * warnings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attack", "ssa:4/255:2", "--perturb", "ref"], "ssa attacks x0 or x1, not ref"),
        (["--subsets", "val/none"], "val/none"),
        (["--weights", "nothing.pth"], "nothing.pth"),
    ],
)
def test_errors_are_one_line(data, weights, capsys, arguments, message):
    given = [] if "--weights" in arguments else ["--weights", weights]
    status, _, err = run("2afc", "--data", data, *given, *arguments, capsys=capsys)
    assert status == 1
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attack", "linf:4/255"], "'linf:4/255' is not an attack"),
        (["--attack", "linf:1/0:3"], "'linf:1/0:3' is not an attack"),
        (["--attack", "linf:1e999:3"], "EPS must lie in 0 ... 1e6"),
        (["--attack", "linf:1e99999999:3"], "EPS must lie in 0 ... 1e6"),
        (["-o", "nowhere/report.json"], "its folder does not exist"),
        (["--plot", "figure.jpg"], "must end in .png or .pdf"),
        (["--save-images", "nowhere/images"], "its folder does not exist"),
        (["--seed", "-1"], "-1 is negative"),
        (["--limit", "0"], "0 is not a positive number"),
    ],
)
def test_wrong_usage_ends_with_2(data, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        run("2afc", "--data", data, *arguments, capsys=capsys)
    assert message in capsys.readouterr().err


def test_two_processes_write_the_report_of_one(data, weights, tmp_path):
    group = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    reports = []
    for launcher in ([], group):
        output = tmp_path / f"report{len(reports)}.json"
        command = [sys.executable, *launcher, "-m", "rlpips", "evaluate", "2afc", "--data", data, "--weights",
                   weights, "--attack", "linf:4/255:2", "--batch-size", "2", "-o", output]  # fmt: skip
        done = subprocess.run(
            [str(each) for each in command], capture_output=True, text=True, timeout=180, env=ENVIRONMENT
        )
        assert done.returncode == 0, done.stderr
        reports.append((done.stdout, output.read_text()))
    assert reports[0] == reports[1]


def test_data_download_is_offered(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["data", "download", "nonsense", "folder"])
    assert "bapps-val" in capsys.readouterr().err
    assert main(["data", "download", "bapps-val", "/nonexistent/folder"]) == 1
    assert "rlpips: error: " in capsys.readouterr().err
