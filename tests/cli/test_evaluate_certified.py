import json
import subprocess
import sys

import numpy as np
import pytest
from commands import ENVIRONMENT, evaluate
from tables import forced_choices, write_table

import rlpips
from rlpips.cli import evaluate_certified
from rlpips.evaluation import Certified, measure_certified

FEW = ["-n", "40", "--alpha", "0.05", "--sigma", "0.05", "--radius", "6/255", "0.05"]


def test_the_report_has_every_metric_and_case_with_every_number(data, weights, capsys, tmp_path):
    output, figure = tmp_path / "report.json", tmp_path / "curve.png"
    status, out, err = evaluate(
        "certified", "--data", data, "--weights", weights, *FEW, "--sigma", "0.05", "1/10", "--perturb", "ref",
        "all", "--subsets", "val/one", "--limit", 3, "-o", output, "--plot", figure, capsys=capsys,
    )  # fmt: skip
    assert (status, err) == (0, "")
    lines = out.splitlines()
    for name in ("metric", "subset", "sigma", "perturb", "natural", "smoothed", "abstained", "6/255", "0.05"):
        assert name in lines[0].split()
    assert len(lines) == 1 + 2 * 2
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.parts"))
    report = json.loads(output.read_text())
    assert report["digests"][weights].startswith("sha256:")
    wanted = {"n": 40, "alpha": 0.05, "sigma": ["0.05", "1/10"], "perturb": ["ref", "all"], "limit": 3}
    assert report["settings"].items() >= wanted.items()
    dataset, metric = rlpips.TwoAFC(data, ["val/one"]), rlpips.LPIPS(weights=weights)
    cases = [(record["sigma"], record["perturb"]) for record in report["results"]]
    assert cases == [("0.05", "ref"), ("0.05", "all"), ("1/10", "ref"), ("1/10", "all")]
    for record in report["results"]:
        sigma = {"0.05": 0.05, "1/10": 0.1}[record["sigma"]]
        certified = Certified(metric, sigma, n=40, alpha=0.05)
        found = measure_certified(certified, dataset, record["perturb"], rows=range(3))
        assert record["votes"] == found.votes.tolist()
        np.testing.assert_allclose(record["radius"], found.radius)
        np.testing.assert_allclose(record["d0"], found.d0, atol=1e-6)
        assert record["largest_radius"] == certified.largest_radius
        assert record["natural"]["value"] == found.natural().mean()
        assert record["smoothed"]["value"] == found.certified(0).mean()
        assert record["abstained"]["value"] == (found.radius == 0).mean()
        assert record["certified"]["6/255"]["value"] == found.certified(6 / 255).mean()
        assert record["certified"]["0.05"]["value"] == found.certified(0.05).mean()
        assert record["certified"]["0.05"]["count"] == 3


def test_images_may_be_resized(data, weights, capsys, tmp_path):
    output = tmp_path / "report.json"
    evaluate("certified", "--data", data, "--weights", weights, *FEW, "--size", 48, "--limit", 1, "-o", output,
             capsys=capsys)  # fmt: skip
    report = json.loads(output.read_text())
    assert report["settings"]["size"] == 48
    certified = Certified(rlpips.LPIPS(weights=weights), 0.05, n=40, alpha=0.05)
    for record in report["results"]:
        dataset = rlpips.TwoAFC(data, [record["subset"]])
        found = measure_certified(certified, dataset, size=48, rows=range(1))
        np.testing.assert_allclose(record["d0"], found.d0, atol=1e-6)
        assert record["votes"] == found.votes.tolist()


def test_it_says_which_radii_the_draws_cannot_certify(data, weights, capsys):
    given = ["certified", "--data", data, "--weights", weights, "--limit", 1, "--n", 40, "--alpha", "0.05"]
    _, out, _ = evaluate(*given, "--sigma", "0.05", "0.2", "--radius", "0.1", capsys=capsys)
    # 0.05 * quantile(0.05 ** (1 / 40)) = 0.0729; with sigma 0.2 it is 0.29
    assert out.splitlines()[-1] == "sigma 0.05: 40 draws certify no radius above 19/255 = 0.073"
    _, out, _ = evaluate(*given, "--sigma", "0.2", "--radius", "0.1", capsys=capsys)
    assert "certify no radius" not in out


def test_an_interrupted_report_goes_on_where_it_stopped(data, capsys, modules, monkeypatch, counting):
    monkeypatch.setattr(evaluate_certified, "CHUNK", 3)
    arguments = ["certified", "--data", data, "--weights", "counting:metric", *FEW, "--subsets", "val/one",
                 "-o", "report.json"]  # fmt: skip
    evaluate(*arguments, capsys=capsys)
    expected, (output,) = json.loads((modules / "report.json").read_text()), modules.glob("report.json")
    calls = len(counting.calls) // 7  # for each of 7 triplets
    output.unlink()
    counting.begin(stop=5 * calls)  # in the second chunk
    assert evaluate(*arguments, capsys=capsys)[0] == 130
    assert not output.exists()
    counting.begin()
    # the batch size does not matter to what is kept
    assert evaluate(*arguments, "--batch-size", "32", capsys=capsys)[0] == 0
    assert len(counting.calls) == 4 * calls  # the first three were done
    assert json.loads(output.read_text()) == expected
    assert not (modules / "report.json.parts").exists()


def test_a_metric_that_gives_nan_leaves_the_others_their_report(data, capsys, modules):
    (modules / "nan_noise.py").write_text(
        "def metric(): return lambda x, y: (x - y).square().mean(dim=(1, 2, 3))\n"
        "def broken(): return lambda x, y: (x - y).mean(dim=(1, 2, 3)) * float('nan')\n"
    )
    status, out, err = evaluate(
        "certified", "--data", data, "--weights", "nan_noise:broken", "nan_noise:metric", *FEW, "--subsets",
        "val/one", "--limit", 1, "-o", "r.json", "--plot", "p.png", capsys=capsys,
    )  # fmt: skip
    assert status == 1
    assert err == "rlpips: nan_noise:broken: broken.<locals>.<lambda> gives NaN for val/one/0\n"
    assert len(out.splitlines()) == 3
    assert out.count("not defined") == 5
    metric, broken = json.loads((modules / "r.json").read_text())["results"]
    assert len(metric["radius"]) == 1
    assert (broken["certified"], broken["problem"]) == (None, err.removeprefix("rlpips: ").strip())
    assert (modules / "p.png").exists()


def test_two_processes_write_the_report_of_one(data, weights, tmp_path):
    group = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    reports = []
    for launcher in ([], group):
        output = tmp_path / f"report{len(reports)}.json"
        command = [sys.executable, *launcher, "-m", "rlpips", "evaluate", "certified", "--data", data, "--weights",
                   weights, *FEW, "--limit", "3", "-o", output]  # fmt: skip
        done = subprocess.run(
            [str(each) for each in command], capture_output=True, text=True, timeout=180, env=ENVIRONMENT
        )
        assert done.returncode == 0, done.stderr
        reports.append((done.stdout, output.read_text()))
    assert reports[0] == reports[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sigma", "0"], "'0' is not a positive number or fraction"),
        (["--sigma", "-0.1"], "-0.1"),
        (["--radius", "36/0"], "'36/0' is not a positive number or fraction, such as 36/255"),
        (["--radius", "nan"], "'nan' is not a positive number or fraction"),
        (["--alpha", "1"], "1 is not a probability between 0 and 1"),
        (["--n", "0"], "0 is not a positive number"),
        (["--perturb", "x"], "invalid choice: 'x'"),
    ],
)
def test_wrong_options_are_wrong_usage(data, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        evaluate("certified", "--data", data, *arguments, capsys=capsys)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_table_of_choices_is_certified(weights, capsys, tmp_path):
    table = write_table(tmp_path / "choices.csv", forced_choices(tmp_path))
    status, out, err = evaluate(
        "certified", "--data", table, "--weights", weights, *FEW, "--limit", 1, capsys=capsys
    )
    assert (status, err) == (0, "")
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["jpeg", "blur"]
