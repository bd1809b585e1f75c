import csv
import json

import numpy as np
import pytest
from commands import evaluate
from scipy import stats
from tables import save, scored_pairs, write_table

from rlpips.data import MOS
from rlpips.evaluation import correlations

METRICS = (
    "def equal(): return lambda x, y: ((x - y).abs().mean(dim=(1, 2, 3)) * 127.5).round(decimals=3)\n"
    "def opposite(): return lambda x, y: -(x - y).abs().mean(dim=(1, 2, 3))\n"
    "def shaky(): return lambda x, y: (7919 * (x - y).abs().mean(dim=(1, 2, 3)) * 127.5).round() % 13\n"
    "def broken(): return lambda x, y: (x - y).mean(dim=(1, 2, 3)) * float('nan')\n"
)


@pytest.fixture
def table(modules):
    """A table of twelve pairs, in a working folder with a module of metrics."""
    (modules / "shades.py").write_text(METRICS)
    return write_table(modules / "pairs.csv", scored_pairs(modules))


def cells(line):
    """Return a line of the table: metric, type, values of the three correlations, pairs, groups."""
    words = line.replace("[", "").replace("]", "").replace(",", "").split()
    return [*words[:2], *words[2:-2:3], *words[-2:]]


def test_the_report_has_every_metric_and_type_with_every_number(table, capsys):
    status, out, err = evaluate(
        "mos", "--data", table, "--weights", "shades:equal", "shades:opposite", "shades:shaky", "-o", "r.json",
        "--plot", "f.png", "--batch-size", 3, capsys=capsys,
    )  # fmt: skip
    assert (status, err) == (0, "")
    header, *lines = out.splitlines()
    assert header.split() == [
        "metric",
        "type",
        "Spearman",
        "[95",
        "%]",
        "Kendall",
        "[95",
        "%]",
        "Pearson",
        "[95",
        "%]",
        "pairs",
        "groups",
    ]
    assert len(lines) == 3 * 3
    assert cells(lines[0]) == ["shades:equal", "all", "1.000", "1.000", "1.000", "12", "3"]
    assert cells(lines[1])[:2] + cells(lines[1])[-2:] == ["shades:equal", "blur", "6", "3"]
    assert cells(lines[3])[:5] == ["shades:opposite", "all", "-1.000", "-1.000", "-1.000"]
    report = json.loads(table.with_name("r.json").read_text())
    dataset = MOS(table)
    assert report["higher_is"] == "worse"
    assert report["pairs"]["score"] == report["distances"]["shades:equal"] == dataset.scores.tolist()
    assert report["pairs"]["dist"][5] == str(dataset.files_of(5)["dist"])
    assert set(report["digests"]) == {"shades:equal", "shades:opposite", "shades:shaky"}
    d = report["distances"]["shades:shaky"]
    (all_pairs,) = (r for r in report["results"] if (r["metric"], r["type"]) == ("shades:shaky", "all"))
    assert all_pairs["Spearman"]["value"] == pytest.approx(stats.spearmanr(d, dataset.scores)[0])
    assert all_pairs["Kendall"]["value"] == pytest.approx(stats.kendalltau(d, dataset.scores)[0])
    for record in report["results"]:
        chosen = [i for i in range(12) if record["type"] in ("all", dataset.types[i])]
        assert record["groups"] == 3
        own = report["distances"][record["metric"]]
        groups = [dataset.groups[i] for i in chosen]
        columns = [np.array([values[i] for i in chosen]) for values in (own, dataset.scores)]
        for name, score in correlations(*columns, groups).items():
            assert record[name] == pytest.approx(vars(score))
    assert table.with_name("f.png").read_bytes().startswith(b"\x89PNG")
    assert not table.with_name("r.json.parts").exists()


def test_scores_of_quality_and_other_names_of_the_column(table, modules, capsys):
    mos = write_table(modules / "mos.csv", scored_pairs(modules, "mos", sign=-1))
    score = write_table(modules / "score.csv", scored_pairs(modules, "score", sign=-1))
    for arguments in ([mos], [score, "--higher-is", "better"]):
        status, out, _ = evaluate("mos", "--data", *arguments, "--weights", "shades:equal", capsys=capsys)
        assert status == 0
        assert cells(out.splitlines()[1])[2:5] == ["1.000", "1.000", "1.000"]
    _, out, _ = evaluate(
        "mos", "--data", score, "--higher-is", "worse", "--weights", "shades:equal", capsys=capsys
    )
    assert cells(out.splitlines()[1])[2:5] == ["-1.000", "-1.000", "-1.000"]


def test_one_reference_has_no_interval_and_one_type_no_rows(modules, capsys):
    (modules / "shades.py").write_text(METRICS)
    rows = [{**row, "type": "jpeg"} for row in scored_pairs(modules, references=1)]
    _, out, _ = evaluate(
        "mos", "--data", write_table(modules / "p.csv", rows), "--weights", "shades:equal", capsys=capsys
    )
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["shades:equal", "all", "1.000", "1.000", "1.000", "4", "1"]
    ]


def test_a_metric_that_gives_nan_leaves_the_others_their_report(table, capsys):
    status, out, err = evaluate(
        "mos", "--data", table, "--weights", "shades:broken", "shades:equal", "-o", "r.json", "--plot", "f.pdf", capsys=capsys,
    )  # fmt: skip
    assert status == 1
    assert err == "rlpips: shades:broken: broken.<locals>.<lambda> gives NaN for blur/line-2\n"
    assert out.splitlines()[1].count("not defined") == 3
    report = json.loads(table.with_name("r.json").read_text())
    assert report["results"][0]["Spearman"]["value"] is None
    assert "gives NaN" in report["results"][0]["problem"]
    assert list(report["distances"]) == ["shades:equal"]
    assert table.with_name("f.pdf").exists()


def test_an_interrupted_report_goes_on_unless_the_table_has_changed(table, modules, capsys, counting):
    arguments = ["mos", "--data", table, "--weights", "counting:metric", "counting:second", "-o", "r.json"]
    counting.begin(stop=5)  # in the second metric; a metric takes three batches
    assert evaluate(*arguments, capsys=capsys)[0] == 130
    counting.begin()
    assert evaluate(*arguments, capsys=capsys)[0] == 0
    assert len(counting.calls) == 3
    (modules / "r.json").unlink()
    counting.begin(stop=5)
    assert evaluate(*arguments, capsys=capsys)[0] == 130
    table.write_text(table.read_text().replace("r0-0", "r0-1"))
    counting.begin()
    assert evaluate(*arguments, capsys=capsys)[0] == 0
    assert len(counting.calls) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.write_text(table.read_text().replace("dmos", "points")), "has no column score or mos or dmos; its first line is: ref, dist, points, type"),
        (lambda table: table.write_text(table.read_text().replace("dmos", "score")), "is a higher score better or worse? Say --higher-is"),
        (lambda table: save(table.parent / "dist" / "r1-0.png", 3, (5, 5)), "pairs.csv, line 6: the images differ in size"),
        (lambda table: (table.parent / "dist" / "r1-0.png").write_text("?"), "pairs.csv, line 6: "),
        (lambda table: table.unlink(), "there is no such table"),
    ],
)  # fmt: skip
def test_errors_are_one_line(table, capsys, change, message):
    change(table)
    status, out, err = evaluate("mos", "--data", table, "--weights", "shades:equal", capsys=capsys)
    assert (status, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_the_robust_metric_agrees_with_people_as_it_is_known_to(shared, tmp_path, capsys):
    table = shared / "human" / "live_r2_subset" / "pairs.csv"
    dataset = MOS(table)
    assert (len(dataset), dataset.higher_is, len(set(dataset.groups))) == (133, "worse", 7)
    with table.open(newline="") as file:  # one type, as all of them take long
        rows = [row for row in csv.DictReader(file) if row["type"] == "gblur"]
    for row in rows:
        row |= {name: table.parent / row[name] for name in ("ref", "dist")}
    blur = write_table(tmp_path / "blur.csv", rows)
    status, out, _ = evaluate("mos", "--data", blur, "--weights", "robust", capsys=capsys)
    assert status == 0
    assert cells(out.splitlines()[1]) == ["robust", "all", "0.955", "0.828", "0.932", "31", "7"]
