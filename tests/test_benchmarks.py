"""Tables of the robustness benchmark."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from tables import save, scored_pairs, write_table

from benchmarks import agreement, measured, unseen

TOOLS = Path(__file__).parents[1] / "tools"
RIGHT, WRONG = ([1.0], [2.0], [0.0]), ([2.0], [1.0], [0.0])  # d0, d1 and judge of one triplet


def columns(*triplets):
    return [np.concatenate(column) for column in zip(*triplets, strict=True)]


def test_shares_are_of_all_or_the_first_triplets():
    judged = {"natural": columns(RIGHT, RIGHT, WRONG, WRONG)}
    assert unseen.shares(judged) == {"natural": 0.5}
    assert unseen.shares(judged, 3) == {"natural": pytest.approx(2 / 3)}


def test_pgd_goes_to_the_main_table_and_every_other_attack_to_another():
    perturbed = {"x0": 0.8, "x1": 0.7, "ref": 0.6}
    found = {"natural": 1.0, "apgd-linf:4/255:30 x0": 0.5, "worst of linf:4/255 x0": 0.4}
    for eps, less in (("4/255", 0), ("8/255", 0.5)):
        found |= {f"linf:{eps}:30x2 {name}": share - less for name, share in perturbed.items()}
    inflation = {"linf:4/255:30x2": 0.2, "linf:8/255:30x2": 0.9}
    row = unseen.under_pgd(found, inflation)
    assert list(row.values()) == pytest.approx([1.0, 0.8, 0.7, 0.6, 0.2, 0.3, 0.2, 0.1, 0.9])
    assert list(unseen.others_of(found)) == ["natural", "apgd-linf:4/255:30 x0", "worst of linf:4/255 x0"]


def test_the_scale_is_that_of_lpips_of_the_same_net():
    rng = np.random.default_rng(0)
    theirs = rng.uniform(0.1, 1, 50)
    ours = theirs * rng.uniform(0.5, 1, 50)
    row = agreement.with_lpips("standard", ours, theirs)
    assert row["median ratio"] == pytest.approx(np.median(ours / theirs))
    assert row["Spearman"] == f"{spearmanr(ours, theirs).statistic:.3f}"
    assert [agreement.standard_of(each) for each in ("robust", "run/a.safetensors", "vgg:robust")] == [
        *("standard", "standard", "vgg:standard")
    ]


def test_a_table_has_gaps_for_what_was_not_measured():
    rows = {"a": {"one": 0.123, "two": "0.5 [0.4, 0.6]"}, "b": {"two": 1.0}}
    assert measured.table("t", rows).splitlines() == [
        "| t | one | two |",
        "| --- | --- | --- |",
        "| a | 0.12 | 0.5 [0.4, 0.6] |",
        "| b |  | 1.00 |",
    ]


@pytest.mark.skipif(not TOOLS.is_dir(), reason="needs the source tree")
def test_agreement_with_people_is_measured_once(tmp_path):
    human = tmp_path / "human"
    live, mucped = human / "live_r2_subset", human / "mucped23"
    live.mkdir(parents=True)
    write_table(live / "pairs.csv", scored_pairs(live))
    for ref in ("one", "two"):
        save(mucped / "refs" / f"{ref}.webp", 100)
        for k, setting in enumerate(("q50", "q60", "q70"), 1):
            save(mucped / "jpeg" / setting / f"{ref}.jpg", 100 + 10 * k)
    with (mucped / "answers.csv").open("w", newline="") as file:
        csv.writer(file).writerows([
            ["ref", "a", "b", "closer"],
            *(["one", "q50", "q60", "a"], ["one", "q70", "q60", "b"]),
            *(["two", "q50", "q60", "b"], ["two", "q70", "q50", "b"]),
        ])  # fmt: skip
    folder = measured.Folder(tmp_path / "kept")
    row = agreement.with_people(folder, "piq:mse", human)
    assert set(row) == {"LIVE, all", "LIVE, jpeg", "LIVE, blur", "mucped23, 2AFC"}
    assert row["LIVE, all"] == "1.000 [1.000, 1.000]"
    assert row["mucped23, 2AFC"] == "0.750 [0.500, 1.000]"  # one reference is judged right, one half right
    assert agreement.in_short(row) == {"people: LIVE": "1.000", "mucped23": "0.750"}
    written = {file: file.stat().st_mtime_ns for file in folder.path.iterdir()}
    assert agreement.with_people(folder, "piq:mse", human) == row
    assert {file: file.stat().st_mtime_ns for file in folder.path.iterdir()} == written
