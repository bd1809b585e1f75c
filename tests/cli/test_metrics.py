import json
import sys

import piq
import pytest
from commands import evaluate

import rlpips
from rlpips.classical import CLASSICAL
from rlpips.cli.parser import make_parser


def test_a_metric_of_ones_own_is_a_function_of_a_module(data, capsys, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def metric():\n    return lambda x, y: (x - y).square().mean(dim=(1, 2, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    status, out, _ = evaluate(
        "2afc", "--data", data, "--weights", "mine:metric", "--attack", "linf:4/255:2", capsys=capsys
    )
    assert status == 0
    assert len(out.splitlines()) == 5
    status, _, err = evaluate("2afc", "--data", data, "--weights", "mine:nothing", capsys=capsys)
    assert status == 1
    assert "'mine:nothing' is not a metric" in err


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
        status, _, err = evaluate("2afc", "--data", data, "--weights", text, capsys=capsys)
        assert status == 1
        assert found in err
        assert not (modules / "imported").exists()
        assert sys.path == path
    assert evaluate("2afc", "--data", data, "--weights", "own_metric:standard", capsys=capsys)[0] == 0
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
    status, out, err = evaluate("2afc", "--data", data, "--weights", "failing_metric:make", capsys=capsys)
    assert (status, out) == (1, "")
    assert err.startswith("rlpips: error: 'failing_metric:make' is not a metric: ")
    assert message in err
    assert len(err.splitlines()) == 1


# Classical metrics


@pytest.fixture
def few_distortions(monkeypatch):
    """All of them take a second, and say no more about metrics."""
    few = {name: rlpips.data.DISTORTIONS[name] for name in ("gaussian-blur", "gaussian-noise", "jpeg")}
    monkeypatch.setattr("rlpips.evaluation.image_changes.DISTORTIONS", few)


def test_classical_metrics_are_attacked_beside_ours(few_distortions, shared, tmp_path, capsys):
    report = tmp_path / "report.json"
    names = ["piq:ssim", "piq:mse", "robust"]
    status, out, err = evaluate(
        "robustness", "--images", shared / "images" / "photos", "--limit", 4, "--weights", *names,
        "--attack", "linf:4/255:5", "-o", report, capsys=capsys,
    )  # fmt: skip
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["attacked", "attack", *names, "inflation"]
    assert [line[0] for line in lines[1:4]] == names
    assert 0 < float(lines[2][-1]) < 0.5  # a change of 4/255 is small for MSE
    rows = json.loads(report.read_text())["attacked"]
    medians = {(row["source"], row["metric"]): row["median"] for row in rows}
    for metric in ("piq:ssim", "robust"):  # its own attack moves images farther than those on others
        assert medians[metric, metric] == max(medians[source, metric] for source in names)


def test_classical_metrics_judge_triplets_and_are_attacked(data, tmp_path, capsys):
    report = tmp_path / "report.json"
    attack = "linf:4/255:10"
    options = ["--data", data, "--subsets", "val/one", "--attack", attack, "-o", report]
    status, _, err = evaluate("2afc", "--weights", "piq:ssim", "piq:ms-ssim", *options, capsys=capsys)
    assert (status, err) == (0, "")
    results = {(each["metric"], each["attack"]): each for each in json.loads(report.read_text())["results"]}
    for k, item in enumerate(rlpips.TwoAFC(data, "val/one")):
        ref, p0 = ((item[name][None] + 1) / 2 for name in ("ref", "p0"))
        assert results["piq:ssim", "none"]["d0"][k] == pytest.approx(1 - piq.ssim(p0, ref).item(), abs=1e-6)
    for metric in ("piq:ssim", "piq:ms-ssim"):
        assert results[metric, "none"]["accuracy"]["value"] == 1
        assert results[metric, attack]["accuracy"]["value"] < 1


def test_images_that_are_too_small_for_a_classical_metric_are_told(data, capsys):
    status, out, err = evaluate("2afc", "--data", data, "--weights", "piq:vif", capsys=capsys)
    assert (status, out) == (1, "")
    assert err == "rlpips: error: vif needs images of at least 41 x 41 pixels, got 40 x 40\n"


def test_a_classical_metric_that_is_unknown_is_told_with_all_names(data, capsys):
    status, out, err = evaluate("jnd", "--data", data, "--weights", "piq:sism", capsys=capsys)
    assert (status, out) == (1, "")
    assert (
        err == f"rlpips: error: there is no classical metric 'sism'; the names are {', '.join(CLASSICAL)}\n"
    )


def test_the_help_names_all_classical_metrics(capsys):
    for command in (["evaluate", "2afc"], ["evaluate", "jnd"], ["evaluate", "robustness"], ["triplets"]):
        with pytest.raises(SystemExit):
            make_parser().parse_args([*command, "--help"])
        words = capsys.readouterr().out.replace(",", " ").replace(";", " ").split()
        assert set(CLASSICAL) <= set(words)
