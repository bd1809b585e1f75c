import itertools
import math
import statistics
from pathlib import Path

import pytest
import torch
from peers import images
from PIL import Image

import rlpips
from rlpips.scoring.failures import Failure
from rlpips.scoring.file_pairs import FilePairs
from rlpips.scoring.many_pairs import Measured
from rlpips.scoring.pair_report import PairReport, measure_files


@pytest.fixture(scope="module")
def metric():
    torch.manual_seed(0)
    return rlpips.LPIPS(pnet_rand=True).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three images of one size, one of another, and one that is damaged."""
    place = tmp_path_factory.mktemp("files")
    for i in range(4):
        size = (3, 40, 40) if i < 3 else (3, 40, 48)
        Image.fromarray(rlpips.tensor2im(images(1, *size, seed=i).clamp(-1, 1))).save(place / f"{i}.png")
    (place / "4.png").write_bytes((place / "0.png").read_bytes()[:60])
    return [place / f"{i}.png" for i in range(5)]


@pytest.mark.parametrize("tile", [None, 32])
def test_what_can_be_measured_is_and_the_rest_is_a_failure(files, metric, tile):
    pairs = list(itertools.combinations(files, 2))
    done = []
    one_by_one = measure_files(FilePairs(pairs), metric, tile=tile, progress=done.append)
    assert sum(done) == len(pairs)
    together = measure_files(FilePairs(pairs, all_of=files), metric, tile=tile)
    assert [(m.a, m.b) for m in together.measured] == [(m.a, m.b) for m in one_by_one.measured]
    assert [m.distance for m in together.measured] == pytest.approx(
        [m.distance for m in one_by_one.measured], abs=1e-6
    )
    for report in (one_by_one, together):
        assert [(m.a, m.b) for m in report.measured] == list(itertools.combinations(files[:3], 2))
        sizes, damaged = report.failures[:3], report.failures[3:]
        assert [(each.file, each.other) for each in sizes] == [(file, files[3]) for file in files[:3]]
        assert [each.file for each in damaged] == [files[4]]  # once, not for each of its pairs


def test_failures_and_files_left_out_are_in_the_report(files, metric):
    failure = Failure(Path("c.png"), "has no partner in x")
    found = measure_files(FilePairs([(files[0], files[1])], [failure], [Path("notes.txt")]), metric)
    assert found.failures == [failure]
    assert found.left_out == [Path("notes.txt")]
    document = found.to_json({"net": "alex"})
    assert document["net"] == "alex"
    assert document["failed"] == [{"file": "c.png", "problem": "has no partner in x"}]
    assert document["left_out"] == ["notes.txt"]


def test_the_summary_is_of_the_distances_that_there_are():
    values = [0.1, 0.4, 0.25]
    report = PairReport([Measured(Path("a"), Path("b"), value) for value in values], [], [])
    error = statistics.stdev(values) / math.sqrt(3)
    assert report.summary() == {"mean": pytest.approx(0.25), "standard_error": error, "median": 0.25}
    assert PairReport(report.measured[:1], [], []).summary()["standard_error"] is None
    assert set(PairReport([], [], []).summary().values()) == {None}
