import csv

import numpy as np
import pytest
from commands import evaluate
from PIL import Image

from rlpips import DatasetError
from rlpips.data import TwoAFCTable


@pytest.fixture
def nights(tmp_path):
    """A folder as NIGHTS unpacks: its table, in the order of its columns, and images."""
    rows = []
    for i, (split, people, right) in enumerate(
        [("test", 7, 1), ("train", 8, 0), ("test", 5, 0), ("test", 6, 0), ("val", 6, 1)]
    ):
        paths = {f"{name}_path": f"{folder}/000/{i:03}_{k}.png"
                 for k, (name, folder) in enumerate({"ref": "ref", "left": "distort", "right": "distort"}.items())}  # fmt: skip
        for k, path in enumerate(paths.values()):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            grey = 100 if k == 0 else 100 + (10 if k == 1 + right else 40)  # the chosen one is nearer
            Image.fromarray(np.full((48, 48, 3), grey, dtype=np.uint8)).save(tmp_path / path)
        rows.append({"id": i, "left_vote": 1 - right, "right_vote": right, "votes": people, **paths,
                     "prompt": "a photo, of a cat", "is_imagenet": True, "split": split})  # fmt: skip
    with (tmp_path / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "data.csv"


def test_the_table_of_nights_is_read_as_it_is(nights):
    data = TwoAFCTable(nights)
    assert data.subsets == ("test", "train", "val")
    test = TwoAFCTable(nights, ["test"])
    assert [test[i]["judge"].item() for i in range(len(test))] == [1, 0]  # one triplet has only 5 votes
    assert [test.name_of(i) for i in range(2)] == ["test/line-2", "test/line-5"]
    assert (test[0]["p1"] - test[0]["ref"]).mean().item() == pytest.approx(10 / 127.5)
    assert (test[0]["p0"] - test[0]["ref"]).mean().item() == pytest.approx(40 / 127.5)
    assert test[0]["ref"].shape == (3, 48, 48)


def test_nights_is_measured_by_one_command(nights, capsys):
    status, out, err = evaluate(
        "2afc", "--data", nights, "--subsets", "test", "--weights", "piq:mse", "--perturb", "ref",
        "--attack", "apgd-linf:1/255:3", "--size", 32, capsys=capsys,
    )  # fmt: skip
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [row[1] for row in rows] == ["test", "test"]
    assert [row[-1] for row in rows] == ["2", "2"]
    assert rows[0][7] == "1.000"


def test_a_share_that_is_none_is_told(nights):
    text = nights.read_text()
    nights.write_text(text.replace("0,0,1,7,", "0,0,3,7,"))
    with pytest.raises(DatasetError, match="line 2: votes is the share of people who chose b.*got 3"):
        TwoAFCTable(nights)
