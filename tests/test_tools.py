import csv
import runpy
import sys
from pathlib import Path

import pytest
import torch
from tables import read, save

from rlpips.data import TwoAFCTable

TOOLS = Path(__file__).parents[1] / "tools"
pytestmark = pytest.mark.skipif(not TOOLS.is_dir(), reason="needs the source tree")


def test_answers_of_mucped23_become_a_table_anywhere(tmp_path, monkeypatch):
    folder = tmp_path / "human" / "mucped23"
    for ref, grey in (("one", 10), ("two", 120)):
        save(folder / "refs" / f"{ref}.webp", grey)
        for k, setting in enumerate(("q50", "q60")):
            save(folder / "jpeg" / setting / f"{ref}.jpg", grey + 8 * k + 8)
    (folder / "answers.csv").write_text("ref,a,b,closer\none,q50,q60,a\ntwo,q60,q50,b\n")
    place = tmp_path / "elsewhere" / "choices.csv"
    place.parent.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mucped23_table.py", "human/mucped23", str(place)])
    runpy.run_path(str(TOOLS / "mucped23_table.py"), run_name="__main__")
    with place.open() as file:
        assert all(not Path(row["ref"]).is_absolute() for row in csv.DictReader(file))
    data = TwoAFCTable(place)
    assert [data.group_of(i) for i in (0, 1)] == ["one", "two"]
    assert [data[i]["judge"].item() for i in (0, 1)] == [0, 1]
    files = (("refs/one.webp", "jpeg/q50/one.jpg", "jpeg/q60/one.jpg"),
             ("refs/two.webp", "jpeg/q60/two.jpg", "jpeg/q50/two.jpg"))  # fmt: skip
    for i, names in enumerate(files):
        for key, name in zip(("ref", "p0", "p1"), names, strict=True):
            assert torch.equal(data[i][key], read(folder / name))
