import json
import platform

import numpy as np
import pytest
import torch
from commands import evaluate

import rlpips
from rlpips.attacks import PGD
from rlpips.evaluation import margin, measure_2afc, two_afc_score


def test_2afc_reports_every_case_with_every_number(data, weights, capsys, tmp_path):
    output = tmp_path / "report.json"
    status, out, err = evaluate(
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


def test_limits_and_subsets(data, weights, capsys):
    _, out, _ = evaluate(
        "2afc", "--data", data, "--weights", weights, "--subsets", "val/two", "--limit", 3, capsys=capsys
    )
    assert len(out.splitlines()) == 2
    assert out.splitlines()[1].split()[1] == "val/two"
    assert out.splitlines()[1].split()[-1] == "3"


def example(folder, name, part):
    subset, stem = name.rsplit("/", 1)
    return folder / subset / part / f"{stem}.png"


def test_pictures_show_the_worst_examples(data, weights, capsys, tmp_path):
    figure, saved = tmp_path / "figure.png", tmp_path / "worst"
    status, _, err = evaluate(
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
    status, _, err = evaluate("2afc", "--data", data, *given, *arguments, capsys=capsys)
    assert status == 1
    assert message in err
    assert len(err.splitlines()) == 1
