import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peers import images
from PIL import Image

import rlpips
from rlpips.attacks import PGD
from rlpips.cli import main
from rlpips.evaluation import jnd_score, measure_2afc, measure_jnd, two_afc_score

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


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.manual_seed(0)
    torch.save(rlpips.LPIPS(pnet_rand=True).state_dict(), path)
    return str(path)


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
    assert report["metrics"][weights].startswith("sha256:")
    assert (report["seed"], report["rlpips"], report["torch"]) == (0, rlpips.__version__, torch.__version__)
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
    assert "'mine:nothing' names no metric" in err


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


def test_an_interrupted_report_goes_on_where_it_stopped(data, capsys, tmp_path, monkeypatch):
    (tmp_path / "counting.py").write_text(COUNTING)
    stop = tmp_path / "counting.py.stop"
    monkeypatch.syspath_prepend(tmp_path)
    output = tmp_path / "report.json"
    arguments = ["2afc", "--data", data, "--weights", "counting:metric", "-o", output]
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
        (["-o", "nowhere/report.json"], "its folder does not exist"),
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
        command = [sys.executable, *launcher, "-m", "rlpips.cli", "evaluate", "2afc", "--data", data, "--weights",
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
