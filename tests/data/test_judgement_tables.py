import numpy as np
import pytest
import torch
from tables import forced_choices, read, save, scored_pairs, write_table

import rlpips
from rlpips import DatasetError, ImageError
from rlpips.data import MOS, TwoAFCTable


def test_scored_pairs(tmp_path):
    rows = scored_pairs(tmp_path)
    data = MOS(write_table(tmp_path / "pairs.csv", rows))
    assert (len(data), data.path, data.higher_is) == (12, tmp_path / "pairs.csv", "worse")
    item = data[5]
    assert set(item) == {"ref", "dist", "score", "index"}
    assert torch.equal(item["ref"], read(tmp_path / "refs" / "r1.png"))
    assert torch.equal(item["dist"], read(tmp_path / "dist" / "r1-1.png"))
    assert (item["score"], item["index"]) == (rows[5]["dmos"], 5)
    assert data[-1]["index"] == 11
    assert data.scores.tolist() == [row["dmos"] for row in rows]
    assert data.types == tuple(row["type"] for row in rows)
    assert data.groups == tuple(row["ref"] for row in rows)
    assert data.name_of(5) == "jpeg/line-7"
    assert data.files_of(5)["dist"] == tmp_path / "dist" / "r1-1.png"
    with pytest.raises(IndexError):
        data[12]


def test_the_sign_is_that_of_the_columns_name_or_of_the_argument(tmp_path):
    def table(score):
        return write_table(tmp_path / f"{score}.csv", scored_pairs(tmp_path, score))

    dmos, mos, score = table("dmos"), table("mos"), table("score")
    steps = MOS(dmos).scores
    assert np.array_equal(MOS(dmos).worse, steps)
    assert np.array_equal(MOS(mos).worse, -steps)
    assert np.array_equal(MOS(mos).scores, steps)
    assert np.array_equal(MOS(dmos, "better").worse, -steps)  # as in KADID-10k, whose DMOS is a MOS
    assert np.array_equal(MOS(score, "worse").worse, steps)
    with pytest.raises(ValueError, match="is a higher score better or worse.*--higher-is"):
        MOS(score)
    with pytest.raises(ValueError, match="higher_is='good' is unknown"):
        MOS(dmos, "good")


def test_groups_other_columns_absolute_paths_and_excels_mark(tmp_path):
    rows = scored_pairs(tmp_path)
    for i, row in enumerate(rows):
        row |= {"group": f"scene {i % 2}", "dmos_std": "?", "ref": tmp_path / row["ref"]}
        del row["type"]
    other = tmp_path / "elsewhere"
    other.mkdir()
    for row in rows:
        row["dist"] = f"../{row['dist']}"
    data = MOS(write_table(other / "pairs.csv", rows, "utf-8-sig"))
    assert data.groups == tuple(f"scene {i % 2}" for i in range(12))
    assert set(data.types) == {"all"}
    assert data[0]["dist"].shape == (3, 20, 24)


def replaced(rows, row, **cells):
    rows = [dict(each) for each in rows]
    rows[row] |= cells
    return rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: replaced(rows, 3, dmos="much"), "line 5: dmos must be a number, got 'much'"),
        (lambda rows: replaced(rows, 3, dmos="nan"), "line 5: dmos must be a number, got 'nan'"),
        (lambda rows: replaced(rows, 3, dmos=""), "line 5: dmos must be a number, got ''"),
        (lambda rows: replaced(rows, 1, dist="none.png"), "line 3: there is no file .*none.png"),
        (lambda rows: replaced(rows, 1, type=" "), "line 3: type is empty"),
        (lambda rows: [{**row, "dmos": 7} for row in rows], "every score is 7"),
        (lambda rows: rows[:2], "at least 3 pairs, got 2"),
        (lambda rows: [{"ref": row["ref"], "type": "x"} for row in rows], "no column dist, score or mos or dmos; its first line is: ref, type"),
        (lambda rows: [{**row, "mos": 1} for row in rows], "several of score, mos, dmos"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused_at_once(tmp_path, change, message):
    path = write_table(tmp_path / "pairs.csv", change(scored_pairs(tmp_path)))
    with pytest.raises(DatasetError, match=message):
        MOS(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the table is empty"),
        (b"ref,dist,dmos\n", "no line below"),
        (b"ref,dist,dmos\na.png,b.png\n", "line 2: must have 3 cells, as the first line, got 2"),
        (b"ref,dist,dmos,dmos\n", "holds a column twice"),
        (b'ref,dist,dmos\n"a.png,b.png,3\n', "not a CSV table"),
        (b"\xff\xfe", "not a CSV table in UTF-8"),
        (b"ref;dist;dmos\n", "no column ref, dist, score or mos or dmos; its first line is: ref;dist;dmos"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, message):
    (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        MOS(tmp_path / "pairs.csv")
    with pytest.raises(DatasetError, match="no such table"):
        MOS(tmp_path / "none.csv")
    with pytest.raises(DatasetError, match="is a folder"):
        MOS(tmp_path)


def test_images_that_cannot_be_measured_are_named_with_their_line(tmp_path):
    data = MOS(write_table(tmp_path / "pairs.csv", scored_pairs(tmp_path)))
    (tmp_path / "dist" / "r0-1.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"pairs.csv, line 3: .*r0-1.png: not an image"):
        data[1]
    save(tmp_path / "dist" / "r0-1.png", 9, (20, 30))
    with pytest.raises(DatasetError, match="line 3: the images differ in size: ref 20 x 24, dist 20 x 30"):
        data[1]


def test_a_table_of_forced_choices_gives_the_items_of_a_folder(tmp_path):
    rows = forced_choices(tmp_path)
    rows[1]["votes"] = 0.25
    data = TwoAFCTable(write_table(tmp_path / "choices.csv", rows))
    assert (len(data), data.subsets) == (12, ("jpeg", "blur"))
    blur = TwoAFCTable(data.path, "blur")
    assert (len(blur), blur.subsets, blur.subset_of(0)) == (6, ("blur",), "blur")
    assert blur.name_of(0) == "blur/line-4"
    assert [data.group_of(i) for i in range(12)] == [
        f"r{r}.png" for _ in range(2) for r in (0, 0, 1, 1, 2, 2)
    ]
    item = data[1]
    assert set(item) == {"ref", "p0", "p1", "judge", "index"}
    for name, file in (("ref", "r0"), ("p0", "r0-1-a"), ("p1", "r0-1-b")):
        assert torch.equal(item[name], read(tmp_path / f"{file}.png"))
    assert (item["judge"].shape, item["judge"].item(), item["index"]) == ((1, 1, 1), 0.25, 1)
    batch = next(iter(torch.utils.data.DataLoader(data, batch_size=3)))
    assert batch["judge"].shape == (3, 1, 1, 1)
    with pytest.raises(ValueError, match="has no type 'noise'; its types are jpeg, blur"):
        TwoAFCTable(data.path, ["noise"])
    with pytest.raises(DatasetError, match="line 6: votes is the share of people who chose b.*got 3"):
        TwoAFCTable(write_table(tmp_path / "counts.csv", replaced(rows, 4, votes=3)))


def test_a_single_data_set_is_one_of_bapps_or_a_table(tmp_path):
    with pytest.raises(rlpips.DatasetError, match="no such folder"):
        rlpips.TwoAFC(write_table(tmp_path / "choices.csv", forced_choices(tmp_path)))
