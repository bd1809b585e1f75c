import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from subsets import FOLDERS, make_subset, pixels

import rlpips
from rlpips import JND, DatasetError, TwoAFC


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    make_subset(root / "2afc" / "val" / "cnn", FOLDERS["2afc"], 3, seed=1)
    make_subset(root / "2afc" / "val" / "traditional", FOLDERS["2afc"], 2, seed=2)
    make_subset(root / "2afc" / "train" / "mix", FOLDERS["2afc"], 4, seed=3)
    make_subset(root / "jnd" / "val" / "cnn", FOLDERS["jnd"], 3, seed=4)
    return root


def test_two_alternatives(root):
    data = TwoAFC(root)
    assert (len(data), data.root, data.subsets) == (5, root, ("val/cnn", "val/traditional"))
    item = data[3]
    assert set(item) == {"ref", "p0", "p1", "judge", "index"}
    assert item["index"] == 3
    for k, part in enumerate(("ref", "p0", "p1")):
        wanted = torch.from_numpy(pixels([2, 0, k])).permute(2, 0, 1) / 127.5 - 1
        assert item[part].dtype == torch.float32
        assert torch.equal(item[part], wanted)
    assert item["judge"].shape == (1, 1, 1)
    assert item["judge"].dtype == torch.float32
    assert [round(data[i]["judge"].item(), 4) for i in range(5)] == [0, 0.1, 0.2, 0, 0.1]


def test_the_judgement_has_the_shape_that_the_loader_of_lpips_gives_it(root):
    batch = next(iter(torch.utils.data.DataLoader(TwoAFC(root), batch_size=3)))
    assert batch["ref"].shape == (3, 3, 16, 16)
    assert batch["judge"].shape == (3, 1, 1, 1)
    assert batch["index"].tolist() == [0, 1, 2]


def test_data_sets_say_what_they_hold(root):
    assert repr(TwoAFC(root)) == f"TwoAFC('{root}', 5 examples: val/cnn: 3, val/traditional: 2)"
    assert repr(JND(root)) == f"JND('{root}', 3 examples: val/cnn: 3)"


def test_names_are_for_reports_by_subset(root):
    data = TwoAFC(root, ["val/traditional", "train/mix", "val/traditional"])
    assert data.subsets == ("val/traditional", "train/mix")
    assert [data.subset_of(i) for i in range(6)] == ["val/traditional"] * 2 + ["train/mix"] * 4
    assert [data.name_of(i) for i in (0, 1, 2, 5)] == [
        "val/traditional/000000", "val/traditional/000001", "train/mix/000000", "train/mix/000003",
    ]  # fmt: skip
    assert data.name_of(-1) == "train/mix/000003"
    assert data[-1]["index"] == 5
    assert len(TwoAFC(str(root), "train/mix")) == 4
    for index in (6, -7):
        with pytest.raises(IndexError):
            data[index]


def test_just_noticeable_differences(root):
    data = JND(root)
    assert (len(data), data.subsets) == (3, ("val/cnn",))
    item = data[1]
    assert set(item) == {"p0", "p1", "same", "index"}
    assert torch.equal(item["p1"], torch.from_numpy(pixels([4, 1, 1])).permute(2, 0, 1) / 127.5 - 1)
    assert item["same"].shape == (1, 1, 1)
    assert item["same"].item() == pytest.approx(0.1)


def test_hidden_files_and_other_image_suffixes(root):
    folder = root / "2afc" / "val" / "cnn"
    (folder / "ref" / ".DS_Store").write_text("")
    (root / "2afc" / "val" / ".cache").mkdir()
    (root / "2afc" / "val" / "cnn.json").write_text("{}")
    Image.fromarray(pixels(9)).save(folder / "p0" / "000001.bmp")
    (folder / "p0" / "000001.png").unlink()
    data = TwoAFC(root)
    assert len(data) == 5
    assert torch.equal(data[1]["p0"], torch.from_numpy(pixels(9)).permute(2, 0, 1) / 127.5 - 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda cnn: shutil.rmtree(cnn / "p1"), r"cnn/p1: there is no such folder"),
        (lambda cnn: (cnn / "p1" / "000001.png").unlink(),
         r"cnn: ref holds 3 files and p1 2; ref/000001.png has no partner in p1"),
        (lambda cnn: (cnn / "ref" / "000001.png").unlink(), r"p0/000001.png has no partner in ref"),
        (lambda cnn: (cnn / "judge" / "000002.npy").rename(cnn / "judge" / "2.npy"),
         r"ref/000002.png has no partner in judge"),
        (lambda cnn: (cnn / "p0" / "notes.txt").write_text(""), r"p0/notes.txt: does not belong here; p0 holds .png"),
        (lambda cnn: (cnn / "judge" / "000001.png").write_text(""), r"judge/000001.png: does not belong here"),
        (lambda cnn: (cnn / "p0" / "000003.png").mkdir(), r"p0/000003.png: does not belong here"),
        (lambda cnn: (cnn / "p0" / "000001.jpg").write_text(""), r"p0: holds both 000001\.(png and 000001.jpg|jpg and)"),
        (lambda cnn: [path.unlink() for path in cnn.glob("*/*")], r"cnn: the subset is empty"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_as_it_should_be_is_named(root, spoil, message):
    spoil(root / "2afc" / "val" / "cnn")
    with pytest.raises(DatasetError, match=message):
        TwoAFC(root)


def test_what_is_not_there_is_named(root, tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere/2afc: there is no such folder; .* 2afc/val/SUBSET"):
        TwoAFC(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"val/color: there is no such folder; there are cnn, traditional"):
        TwoAFC(root, "val/color")
    (tmp_path / "2afc").mkdir()
    with pytest.raises(DatasetError, match="val: there are no subsets"):
        TwoAFC(tmp_path)
    for name in ("cnn", "test/cnn", "val/", "val/../train", "val/..", "val/a/b", "/val/cnn"):
        with pytest.raises(ValueError, match=r"does not name a subset; write 'train/SUBSET' or 'val/SUBSET'"):
            TwoAFC(root, [name])
    with pytest.raises(ValueError, match=r"write 'val/SUBSET'"):
        JND(root, "train/cnn")
    with pytest.raises(ValueError, match="subsets is empty"):
        TwoAFC(root, [])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([0.5, 0.5]), r"must hold one value, got \(2,\)"),
        (np.array([]), r"must hold one value, got \(0,\)"),
        (np.array([1.5]), r"must lie in \[0, 1\], got 1.5"),
        (np.array([-0.1]), r"must lie in \[0, 1\]"),
        (np.array([np.nan]), r"must lie in \[0, 1\], got nan"),
        (np.array([np.inf]), r"must lie in \[0, 1\]"),
        (np.array(["0.5"]), r"must hold a number, got <U3"),
        (np.array([True]), r"must hold a number, got bool"),
        (np.array([{"a": 1}]), r"not a NumPy array of one value"),
        (b"", r"not a NumPy array of one value"),
        (b"\x93NUMPY", r"not a NumPy array of one value"),
        (b"garbage", r"not a NumPy array of one value"),
        (b"\x93NUMPY\1\0\x0a\0{'shape': (", r"not a NumPy array of one value"),
        (b"PK\3\4garbage", r"not a NumPy array of one value"),
        ("npz", r"must hold one value, got an archive"),
    ],
)  # fmt: skip
def test_a_judgement_that_is_none_is_named(root, value, message):
    path = root / "2afc" / "val" / "cnn" / "judge" / "000001.npy"
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif isinstance(value, str):
        with path.open("wb") as file:
            np.savez(file, a=np.ones(1))
    else:
        np.save(path, value)
    data = TwoAFC(root)
    assert data[0]["index"] == 0
    with pytest.raises(DatasetError, match=message) as caught:
        data[1]
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "value", [np.float64(1), np.array([[[1.0]]]), np.array([1]), np.array(1, dtype=">f2")]
)
def test_a_judgement_may_have_any_shape_and_numeric_type(root, value):
    np.save(root / "2afc" / "val" / "cnn" / "judge" / "000001.npy", value)
    judge = TwoAFC(root)[1]["judge"]
    assert (judge.shape, judge.dtype, judge.item()) == ((1, 1, 1), torch.float32, 1.0)


def test_images_that_cannot_be_used_are_named(root):
    folder = root / "2afc" / "val" / "cnn"
    (folder / "p0" / "000001.png").write_bytes(b"")
    Image.fromarray(pixels(0, 20)).save(folder / "p1" / "000002.png")
    data = TwoAFC(root)
    with pytest.raises(rlpips.ImageError, match=r"p0/000001.png: the file is empty"):
        data[1]
    with pytest.raises(
        DatasetError, match=r"val/cnn/000002: the images differ in size: .* p1 20 x 20 pixels"
    ):
        data[2]
