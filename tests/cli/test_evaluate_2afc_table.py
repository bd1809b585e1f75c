"""`rlpips evaluate 2afc` on a table."""

import json

import numpy as np
import pytest
from commands import evaluate
from tables import forced_choices, write_table

import rlpips
from rlpips.attacks import PGD
from rlpips.data import TwoAFCTable
from rlpips.evaluation import bootstrap, measure_2afc, two_afc_score


def equal():
    """A metric that chooses the image nearer in grey."""
    return lambda x, y: (x - y).abs().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("size", [[], ["--size", 32]])
def test_types_are_subsets_and_intervals_resample_references(size, tmp_path, modules, capsys):
    table = write_table(tmp_path / "choices.csv", forced_choices(tmp_path))
    status, _, err = evaluate(
        "2afc", "--data", table, "--weights", f"{__name__}:equal", "-o", "r.json", *size, capsys=capsys
    )
    assert (status, err) == (0, "")
    records = json.loads((tmp_path / "r.json").read_text())["results"]
    assert [(record["subset"], len(record["d0"])) for record in records] == [("jpeg", 6), ("blur", 6)]
    assert records[0]["2AFC"]["value"] == 1
    assert records[1]["2AFC"]["value"] == 0.5  # people took the farther image in the last of each reference
    for record in records:
        columns = [np.array(record[name]) for name in ("d0", "d1", "judge")]
        dataset = TwoAFCTable(table, record["subset"])
        groups = [dataset.group_of(i) for i in range(len(dataset))]
        expected = bootstrap(lambda *c: float(np.mean(two_afc_score(*c))), *columns, groups=groups)
        assert record["2AFC"] == pytest.approx(vars(expected))
    assert records[1]["2AFC"]["low"] == records[1]["2AFC"]["high"] == 0.5  # as each reference is half right


def test_people_s_triplets_are_attacked(tmp_path, weights, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = write_table(tmp_path / "choices.csv", forced_choices(tmp_path, references=2, same_size=False))
    status, _, err = evaluate(
        "2afc", "--data", table, "--weights", weights, "--subsets", "blur", "--attack", "linf:4/255:2",
        "--perturb", "ref", "-o", "r.json", "--save-images", "worst", capsys=capsys,
    )  # fmt: skip
    assert (status, err) == (0, "")
    natural, attacked = json.loads((tmp_path / "r.json").read_text())["results"]
    metric, dataset = rlpips.LPIPS(weights=weights), TwoAFCTable(table, "blur")
    for record, attack in ((natural, None), (attacked, PGD("linf", 4 / 255, 2))):
        d0, _, judge = measure_2afc(metric, dataset, attack, "ref")
        np.testing.assert_allclose(record["d0"], d0, atol=1e-6)
        assert record["judge"] == judge.tolist()
    assert attacked["2AFC"]["value"] < natural["2AFC"]["value"]
    assert list((tmp_path / "worst").rglob("1-blur-line-*.png"))


def test_errors_are_one_line(tmp_path, weights, capsys):
    rows = forced_choices(tmp_path, references=1)
    table = write_table(tmp_path / "choices.csv", rows)
    for arguments, message in (
        (["--subsets", "noise"], "no type 'noise'"),
        ([], "line 2: votes is the share"),
    ):
        status, out, err = evaluate("2afc", "--data", table, "--weights", weights, *arguments, capsys=capsys)
        assert (status, out, len(err.splitlines())) == (1, "", 1)
        assert message in err
        rows[0]["votes"] = 12
        write_table(table, rows)


def test_kept_results_count_only_for_the_same_table(tmp_path, modules, capsys, counting):
    rows = forced_choices(tmp_path)
    table = write_table(tmp_path / "choices.csv", rows)
    command = ["2afc", "--data", table, "--weights", "counting:metric", "counting:second", "-o", "r.json"]
    counting.begin(stop=5)  # in the second metric; a metric takes two batches of two distances
    assert evaluate(*command, capsys=capsys)[0] == 130
    assert list((tmp_path / "r.json.parts").iterdir())
    counting.begin()
    write_table(table, [{**row, "votes": 1 - float(row["votes"])} for row in rows])
    assert evaluate(*command[:5], "-o", "r.json", capsys=capsys)[0] == 0
    records = json.loads((tmp_path / "r.json").read_text())["results"]
    assert records[0]["2AFC"]["value"] == 0
