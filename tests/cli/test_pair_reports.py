import csv
import json
from pathlib import Path

import numpy as np
import pytest
from commands import BLURRED, CAT, expected, run

from rlpips.cli import main


def test_tiles_give_the_same_table(folders, weights, capsys):
    for command in (("distance", CAT, BLURRED), ("compare", *folders), ("pairs", folders[0], "--all")):
        whole = run(*command, "--weights", weights, capsys=capsys)
        assert run(*command, "--weights", weights, "--tile", 64, capsys=capsys) == whole
    with pytest.raises(SystemExit):
        main(["distance", str(CAT), str(BLURRED), "--tile", "0"])
    assert "0 is not a positive number" in capsys.readouterr().err


def test_csv_and_json(folders, weights, capsys):
    one, two = folders
    value = expected(one / "0.png", two / "0.png", weights)
    status, out, _ = run("compare", one, two, "--weights", weights, "--csv", capsys=capsys)
    assert status == 1
    rows = list(csv.reader(out.splitlines()))
    assert rows[0] == ["a", "b", "distance"]
    assert rows[1][:2] == [str(one / "0.png"), str(two / "0.png")]
    assert float(rows[1][2]) == pytest.approx(value, rel=1e-6)
    assert len(rows) == 3
    _, out, _ = run("compare", one, two, "--weights", weights, "--json", capsys=capsys)
    report = json.loads(out)
    assert report["pairs"][0] == {
        "a": str(one / "0.png"),
        "b": str(two / "0.png"),
        "distance": pytest.approx(value),
    }
    assert report["mean"] == pytest.approx(np.mean([pair["distance"] for pair in report["pairs"]]))
    assert {Path(failure["file"]).name for failure in report["failed"]} == {"extra.png", "2.png"}
    assert report["left_out"] == [str(one / "notes.txt")]
    assert report["median"] == pytest.approx(np.median([pair["distance"] for pair in report["pairs"]]))
    assert report["device"] == "cpu"
    assert (report["net"], report["weights"], report["version"]) == ("alex", weights, "0.1")
    _, out, _ = run("distance", CAT, BLURRED, "--weights", weights, "--json", capsys=capsys)
    assert json.loads(out)["standard_error"] is None


def test_output_files_are_written_whole_or_not_at_all(folders, weights, capsys, tmp_path):
    one, two = folders
    for name in ("report.csv", "report.json", "report.txt"):
        target = tmp_path / name
        target.write_text("old")
        status, out, _ = run("compare", one, two, "--weights", weights, "-o", target, capsys=capsys)
        assert (status, out.splitlines()[0][:13]) == (1, "2 pairs, mean")
        assert len(out.splitlines()) == 1
        text = target.read_text()
        assert text.startswith({"report.csv": "a,b,", "report.json": "{", "report.txt": "0.png"}[name])
    assert not list(tmp_path.glob(".*"))


def test_an_output_file_that_cannot_be_written_is_told_before_the_work(weights, capsys, tmp_path):
    for target in (tmp_path / "nowhere" / "report.csv", tmp_path):
        with pytest.raises(SystemExit, match="2"):
            main(["distance", "a.png", "b.png", "--weights", weights, "-o", str(target)])
        assert "cannot be written" in capsys.readouterr().err
