import json
import platform
import re

import numpy as np
import pytest
import torch
from commands import evaluate

import rlpips
from rlpips.attacks import PGD, RankFlip
from rlpips.evaluation import accuracy, margin, measure_2afc, two_afc_score


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


def results(data, weights, output, *arguments, capsys):
    status, out, err = evaluate(
        "2afc", "--data", data, "--weights", weights, "-o", output, *arguments, capsys=capsys
    )
    assert (status, err) == (0, "")
    report = json.loads(output.read_text())
    return {(r["subset"], r["attack"], r["perturb"]): r for r in report["results"]}, report, out


def test_two_budgets_in_one_run_give_what_two_runs_give(data, weights, capsys, tmp_path):
    found = [
        results(
            data, weights, tmp_path / f"{k}.json", "--attack", text, "--perturb", "x0", "ref", capsys=capsys
        )[0]
        for k, text in enumerate(("linf:2/255,4/255:2x2", "linf:2/255:2x2", "linf:4/255:2x2"))
    ]
    both, first, second = found
    assert both == {**first, **second}
    assert {attack for _, attack, _ in both} == {"none", "linf:2/255:2x2", "linf:4/255:2x2"}
    metric = rlpips.LPIPS(weights=weights)
    expected = measure_2afc(
        metric, rlpips.TwoAFC(data, ["val/two"]), PGD("linf", 4 / 255, 2, restarts=2), "ref"
    )
    record = both["val/two", "linf:4/255:2x2", "ref"]
    np.testing.assert_allclose([record[name] for name in ("d0", "d1", "judge")], expected, atol=1e-6)


def test_worst_of_is_the_strongest_attack_of_a_budget_on_each_triplet(data, weights, capsys, tmp_path):
    singles = ["linf:2/255:1", "apgd-linf:2/255:2", "linf:2/255:2"]
    others = ["linf:4/255:1", "l2:2/255:1"]
    by_case, report, out = results(
        data, weights, tmp_path / "r.json", "--attack", *singles, *others, "--perturb", "x0", "ref", capsys=capsys
    )  # fmt: skip
    worst = "worst of linf:2/255"
    assert {attack for _, attack, _ in by_case} == {"none", *singles, *others, worst}
    assert report["settings"]["attacks"][worst] == {"kind": "WorstOf", "attacks": singles}
    assert report["settings"]["attacks"]["linf:2/255:1"]["steps"] == 1
    strongest = set()
    for subset in ("val/one", "val/two"):
        for perturb in ("x0", "ref"):
            columns, margins, right = (
                [compute(*(np.array(by_case[subset, attack, perturb][name]) for name in ("d0", "d1", "judge")))
                 for attack in (*singles, worst)]
                for compute in (lambda *columns: np.stack(columns), margin, accuracy)
            )  # fmt: skip
            np.testing.assert_array_equal(margins[-1], np.min(margins[:-1], axis=0))
            np.testing.assert_array_equal(right[-1], np.min(right[:-1], axis=0))
            record = by_case[subset, worst, perturb]
            assert record["accuracy"]["value"] == np.min(right[:-1], axis=0).mean()
            for i in range(7):
                (k, *_) = (k for k in range(3) if (columns[k][:, i] == columns[-1][:, i]).all())
                strongest.add(k)
    rows = [re.split(r"\s{2,}", line)[1:4] for line in out.splitlines()]
    assert ["val/two", worst, "ref"] in rows
    assert len(strongest) > 1  # no single attack is the strongest on every triplet


def test_resized_images_are_measured_and_attacked(data, weights, capsys, tmp_path):
    saved = tmp_path / "worst"
    arguments = ["--attack", "linf:4/255:1", "--size", "48", "--save-images", saved, "--limit", "3"]
    by_case, report, _ = results(data, weights, tmp_path / "r.json", *arguments, capsys=capsys)
    assert report["settings"]["size"] == 48
    metric, dataset = rlpips.LPIPS(weights=weights), rlpips.TwoAFC(data, ["val/one"])
    for i in range(3):
        ref, x0, x1 = (
            torch.nn.functional.interpolate(dataset[i][name][None], (48, 48), mode="bilinear", antialias=True)
            for name in ("ref", "p0", "p1")
        )
        record = by_case["val/one", "none", "-"]
        assert record["d0"][i] == pytest.approx(metric(x0, ref).item(), abs=1e-6)
        assert record["d1"][i] == pytest.approx(metric(x1, ref).item(), abs=1e-6)
        attack, objective = PGD("linf", 4 / 255, 1), RankFlip(metric, ref, x0, x1, torch.tensor([0.2]))
        attacked = attack(objective, x0.clamp(-1, 1), [i])
        expected = metric(attacked, ref).item()
        assert by_case["val/one", "linf:4/255:1", "x0"]["d0"][i] == pytest.approx(expected, abs=1e-4)
    pictures = [rlpips.load_image(path).shape for path in saved.rglob("*.png")]
    assert set(pictures) == {(48, 3 * 48, 3), (48, 5 * 48, 3)}


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
