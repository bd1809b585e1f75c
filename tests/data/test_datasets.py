import gzip
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from server import Server

import rlpips
from rlpips import JND, DatasetError, TwoAFC
from rlpips.data import bapps, download
from rlpips.hub import downloads
from rlpips.system import shared_folders

PARTS = {"2afc": ("ref", "p0", "p1", "judge"), "jnd": ("p0", "p1", "same")}


def pixels(seed, size=16):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def make_subset(folder, parts, count, seed=0):
    """Write a subset; example i is judged i / 10."""
    for part in parts:
        (folder / part).mkdir(parents=True)
        for i in range(count):
            if part in ("judge", "same"):
                np.save(folder / part / f"{i:06d}.npy", np.array([i / 10], dtype=np.float32))
            else:
                Image.fromarray(pixels([seed, i, parts.index(part)])).save(folder / part / f"{i:06d}.png")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    make_subset(root / "2afc" / "val" / "cnn", PARTS["2afc"], 3, seed=1)
    make_subset(root / "2afc" / "val" / "traditional", PARTS["2afc"], 2, seed=2)
    make_subset(root / "2afc" / "train" / "mix", PARTS["2afc"], 4, seed=3)
    make_subset(root / "jnd" / "val" / "cnn", PARTS["jnd"], 3, seed=4)
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


# Downloads


def archive(entries):
    """Make a .tar.gz of pairs of a name, or a TarInfo, and content."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for member, content in entries:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def entries_of(folder, prefix):
    return [
        (f"{prefix}{path.relative_to(folder).as_posix()}", path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    """The folder `2afc/val` as BAPPS has it, with two examples in each subset."""
    root = tmp_path_factory.mktemp("source")
    for subset in ("traditional", "cnn", "superres", "deblur", "color", "frameinterp"):
        make_subset(root / subset, PARTS["2afc"], 2)
    return root


@pytest.fixture(scope="module")
def whole(val):
    return archive(entries_of(val, "2afc/val/"))


@pytest.fixture
def online(monkeypatch):
    monkeypatch.delenv("RLPIPS_OFFLINE")
    monkeypatch.setattr(downloads, "_BACK_OFF", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.parametrize("prefix", ["2afc/val/", "dataset/2afc/val/", "./2afc/val/", "val/", ""])
def test_a_part_of_bapps_is_fetched_and_unpacked(val, tmp_path, online, prefix):
    noise = [(f"{prefix}README.txt", b"read me"), (f"{prefix}cnn/ref/._000000.png", b"")]
    with Server(archive(noise + entries_of(val, prefix))) as server:
        folder = download("bapps-val", tmp_path / "new" / "root", url=server.url("good"))
        assert folder == tmp_path / "new" / "root"
        data = TwoAFC(folder)
        assert (len(data), len(data.subsets)) == (12, 6)
        for path in val.rglob("*.*"):
            assert (folder / "2afc" / "val" / path.relative_to(val)).read_bytes() == path.read_bytes()
        assert visible(folder) == ["2afc"]
        assert len(server.requests) == 1
        download("bapps-val", folder, url=server.url("good"))
        assert len(server.requests) == 1


def test_the_other_parts_go_to_their_places(tmp_path, online):
    make_subset(tmp_path / "source" / "cnn", PARTS["jnd"], 2)
    make_subset(tmp_path / "mix" / "mix", PARTS["2afc"], 2)
    with Server(archive(entries_of(tmp_path / "source", "jnd/val/"))) as server:
        download("bapps-jnd", tmp_path, url=server.url("good"))
    with Server(archive(entries_of(tmp_path / "mix", "2afc/train/"))) as server:
        download("bapps-train", tmp_path, url=server.url("good"))
    assert JND(tmp_path).subsets == ("val/cnn",)
    assert len(TwoAFC(tmp_path, "train/mix")) == 2


@pytest.mark.parametrize("way", ["cut", "busy", "no-ranges"])
def test_a_transfer_without_a_digest_survives_a_bad_line(whole, tmp_path, online, way):
    with Server(whole) as server:
        download("bapps-val", tmp_path, url=server.url(way))
    assert len(TwoAFC(tmp_path)) == 12


def test_a_transfer_is_continued_by_the_next_call(whole, tmp_path, online):
    (tmp_path / "twoafc_val.tar.gz.part").write_bytes(whole[:1000])
    with Server(whole) as server:
        download("bapps-val", tmp_path, url=server.url("good"))
        assert [wanted for _, wanted in server.requests] == ["bytes=1000-"]
    assert len(TwoAFC(tmp_path)) == 12


def test_a_broken_transfer_leaves_a_part_and_no_data_set(whole, tmp_path, online):
    with Server(whole) as server, pytest.raises(downloads.DownloadError):
        download("bapps-val", tmp_path, url=server.url("always-cut"))
    assert visible(tmp_path) == ["twoafc_val.tar.gz.part"]


def test_of_two_processes_at_once_one_fetches_and_the_other_waits(whole, tmp_path, online):
    with Server(whole) as server:
        script = (
            "from rlpips.data import bapps\n"
            "from rlpips.system import locks\n"
            "locks._PATIENCE = 0.0\n"
            f"bapps.download('bapps-val', {str(tmp_path)!r}, url={server.url('held')!r})\n"
        )
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(rlpips.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
        }
        ours, theirs = os.pipe()
        both = [
            subprocess.Popen([sys.executable, "-c", script], stderr=theirs, env=environment) for _ in range(2)
        ]
        os.close(theirs)
        try:
            said = []
            with open(ours) as lines:  # noqa: PTH123 (a descriptor)
                for line in lines:
                    said.append(line)
                    if line.startswith("waiting for another process that fetches bapps-val"):
                        server.released.set()
            assert [each.wait(60) for each in both] == [0, 0], said
        finally:
            for each in both:
                each.kill()
        assert len(server.requests) == 1
    assert len(TwoAFC(tmp_path)) == 12
    assert visible(tmp_path) == ["2afc"]


def test_what_lies_there_is_left_alone(whole, tmp_path, online):
    make_subset(tmp_path / "2afc" / "val" / "triplets", PARTS["2afc"], 1)
    make_subset(tmp_path / "2afc" / "val" / "cnn", PARTS["2afc"], 5)
    with Server(whole) as server:
        download("bapps-val", tmp_path, url=server.url("good"))
    assert len(TwoAFC(tmp_path, "val/cnn")) == 5
    assert len(TwoAFC(tmp_path)) == 1 + 5 + 5 * 2


def test_offline_only_an_archive_brought_by_hand_is_used(whole, tmp_path):
    with pytest.raises(downloads.DownloadError, match=r"RLPIPS_OFFLINE forbids .*dataset/twoafc_val.tar.gz"):
        download("bapps-val", tmp_path)
    assert not visible(tmp_path)
    (tmp_path / "twoafc_val.tar.gz").write_bytes(whole)
    download("bapps-val", tmp_path)
    assert len(TwoAFC(tmp_path)) == 12
    assert visible(tmp_path) == ["2afc"]


def member(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("../cnn/ref/000009.png", "may lead out of the folder"),
        ("2afc/val/../../../../cnn/ref/000009.png", "may lead out"),
        ("2afc/val/cnn/ref/..", "may lead out"),
        ("/cnn/ref/000009.png", "may lead out"),
        ("cnn/ref/..\\..\\x.png", "may lead out"),
        ("C:cnn/ref/000009.png", "may lead out"),
        (member("cnn/ref/000009.png", tarfile.SYMTYPE, "/etc/passwd"), "is a link"),
        (member("cnn/ref/000009.png", tarfile.LNKTYPE, "cnn/ref/000000.png"), "is a link"),
        (member("cnn/ref", tarfile.SYMTYPE, "/tmp"), "is a link"),
        (member("cnn/ref/000009.png", tarfile.CHRTYPE), "is a device"),
        (member("elsewhere", tarfile.FIFOTYPE), "is a device or the like"),
    ],
)  # fmt: skip
def test_hostile_members_are_refused_by_name(val, tmp_path, entry, message):
    name = entry if isinstance(entry, str) else entry.name
    content = b"" if isinstance(entry, tarfile.TarInfo) else b"evil"
    folder = tmp_path / "deep" / "root"
    folder.mkdir(parents=True)
    (folder / "twoafc_val.tar.gz").write_bytes(archive([*entries_of(val, "2afc/val/"), (entry, content)]))
    with pytest.raises(DatasetError, match=message) as caught:
        download("bapps-val", folder)
    assert repr(name) in str(caught.value)
    assert not visible(folder)
    assert visible(tmp_path) == ["deep"]
    assert visible(tmp_path / "deep") == ["root"]


def damaged(whole):
    """Change a byte of what gzip packed, keeping its checksum."""
    plain = bytearray(gzip.decompress(whole))
    plain[5 * 512 + 700] ^= 1
    return gzip.compress(bytes(plain))[:-8] + whole[-8:]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "is damaged"),
        (lambda whole: whole[:-4], "is damaged"),
        (damaged, "is damaged"),
        (lambda whole: b"<html>please log in</html>", "is damaged"),
        (lambda whole: b"", "is damaged"),
        # Python 3.10 takes an empty archive for a damaged one
        (lambda whole: archive([]), "it holds no file in a folder SUBSET/ref|is damaged"),
        (lambda whole: archive([("a/b/c/d.png", b"")]), "it holds no file in a folder"),
        (lambda whole: archive([("cnn/ref/0.png", b"")]), "p0: there is no such folder"),
        (lambda whole: archive([("x/cnn/ref/0.png", b""), ("y/cnn/ref/0.png", b"")]), "holds cnn/ref/0.png twice"),
    ],
)  # fmt: skip
def test_an_archive_that_is_no_data_set_is_deleted(whole, tmp_path, spoil, message):
    (tmp_path / "twoafc_val.tar.gz").write_bytes(spoil(whole))
    with pytest.raises(DatasetError, match=message) as caught:
        download("bapps-val", tmp_path)
    assert "deleted" in str(caught.value)
    assert str(caught.value).endswith("another call downloads it again")
    assert not visible(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")  # noqa: PTH110
def test_a_full_disk_is_reported_as_such(whole, tmp_path, online, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: Path("/dev/full").write_text("x"))
    with (
        Server(whole) as server,
        pytest.raises(downloads.DownloadError, match="the disk is full: .*another disk"),
    ):
        download("bapps-val", tmp_path, url=server.url("good"))
    (tmp_path / "twoafc_val.tar.gz.part").unlink()
    (tmp_path / "twoafc_val.tar.gz").write_bytes(whole)
    monkeypatch.undo()

    def full(source, target):
        Path("/dev/full").write_text("x")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(downloads.DownloadError, match="the disk is full: .* unpacks to; free some space"):
        download("bapps-val", tmp_path)
    assert visible(tmp_path) == ["twoafc_val.tar.gz"]  # needs not be fetched again
    monkeypatch.undo()
    download("bapps-val", tmp_path)
    assert len(TwoAFC(tmp_path)) == 12


@pytest.mark.parametrize("there", [True, False])
def test_what_was_left_half_unpacked_is_removed_once_it_is_old(whole, tmp_path, there):
    (tmp_path / "twoafc_val.tar.gz").write_bytes(whole)
    if there:
        download("bapps-val", tmp_path)
        (tmp_path / "twoafc_val.tar.gz").write_bytes(whole)
    for name in ("old", "new"):
        (tmp_path / f".twoafc_val.tar.gz.{name}" / "2afc" / "val").mkdir(parents=True)
    long_ago = time.time() - shared_folders.ABANDONED - 60
    os.utime(tmp_path / ".twoafc_val.tar.gz.old", (long_ago, long_ago))
    download("bapps-val", tmp_path)
    assert not (tmp_path / ".twoafc_val.tar.gz.old").exists()
    assert (tmp_path / ".twoafc_val.tar.gz.new").exists()


def test_an_unknown_name(tmp_path):
    with pytest.raises(
        ValueError, match=r"no data set named 'bapps'; the names are bapps-val, bapps-train, bapps-jnd"
    ):
        download("bapps", tmp_path)


def test_the_addresses_are_those_of_the_authors():
    for archive in bapps._ARCHIVES.values():
        assert re.fullmatch(r"(twoafc_(val|train)|jnd)\.tar\.gz", archive.file)
