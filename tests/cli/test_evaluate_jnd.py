import json
import shutil

import numpy as np
import pytest
import torch
from commands import evaluate

import rlpips
from rlpips.evaluation import disagreement, jnd_score, measure_jnd


def test_jnd(data, weights, capsys):
    status, out, _ = evaluate(
        "jnd", "--data", data, "--weights", weights, "--subsets", "val/one", capsys=capsys
    )
    assert status == 0
    expected = jnd_score(*measure_jnd(rlpips.LPIPS(weights=weights), rlpips.JND(data)))
    assert f"{expected:.3f} [" in out.splitlines()[1]


def test_a_score_that_is_not_defined_is_null_and_the_report_is_kept(data, capsys, weights, tmp_path):
    shutil.copytree(data / "jnd", tmp_path / "jnd")
    for path in (tmp_path / "jnd").rglob("*.npy"):
        np.save(path, np.array([0.0]))  # nobody saw a pair as the same
    output = tmp_path / "r.json"
    status, out, err = evaluate("jnd", "--data", tmp_path, "--weights", weights, "-o", output, capsys=capsys)
    assert (status, err) == (0, "")
    assert "not defined" in out
    (record,) = json.loads(output.read_text())["results"]
    assert record["mAP"] == {"value": None, "low": None, "high": None, "count": 6}
    assert len(record["d"]) == 6


def test_pictures_of_jnd(data, weights, capsys, tmp_path):
    figure, saved = tmp_path / "figure.pdf", tmp_path / "worst"
    status, _, err = evaluate(
        "jnd", "--data", data, "--weights", weights, "--plot", figure, "--save-images", saved, capsys=capsys
    )
    assert (status, err) == (0, "")
    assert figure.read_bytes().startswith(b"%PDF")
    dataset = rlpips.JND(data)
    apart = disagreement(*measure_jnd(rlpips.LPIPS(weights=weights), dataset))
    first = int(np.argmax(apart))
    (path,) = saved.glob(f"*/natural/1-{dataset.name_of(first).replace('/', '-')}.png")
    assert rlpips.load_image(path).shape == (40, 120, 3)
    subset, stem = dataset.name_of(first).rsplit("/", 1)
    original = rlpips.load_image(data / "jnd" / subset / "p0" / f"{stem}.png")
    assert np.array_equal(rlpips.load_image(path)[:, :40], original)


def test_pairs_may_be_resized(data, weights, capsys, tmp_path):
    output = tmp_path / "report.json"
    status, _, err = evaluate(
        "jnd", "--data", data, "--weights", weights, "--size", 48, "-o", output, capsys=capsys
    )
    assert (status, err) == (0, "")
    report = json.loads(output.read_text())
    assert report["settings"]["size"] == 48
    metric = rlpips.LPIPS(weights=weights)
    for item, found in zip(rlpips.JND(data), report["results"][0]["d"], strict=True):
        p0, p1 = (
            torch.nn.functional.interpolate(item[name][None], (48, 48), mode="bilinear", antialias=True)
            for name in ("p0", "p1")
        )
        assert found == pytest.approx(metric(p0, p1).item(), abs=1e-6)
