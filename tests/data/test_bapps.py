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

import pytest
from server import Server
from subsets import FOLDERS, make_subset

import rlpips
from rlpips import JND, DatasetError, TwoAFC
from rlpips.data import bapps, download
from rlpips.errors import DownloadError
from rlpips.hub import downloads
from rlpips.system import shared_folders


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
        make_subset(root / subset, FOLDERS["2afc"], 2)
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
    make_subset(tmp_path / "source" / "cnn", FOLDERS["jnd"], 2)
    make_subset(tmp_path / "mix" / "mix", FOLDERS["2afc"], 2)
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
    with Server(whole) as server, pytest.raises(DownloadError):
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
    make_subset(tmp_path / "2afc" / "val" / "triplets", FOLDERS["2afc"], 1)
    make_subset(tmp_path / "2afc" / "val" / "cnn", FOLDERS["2afc"], 5)
    with Server(whole) as server:
        download("bapps-val", tmp_path, url=server.url("good"))
    assert len(TwoAFC(tmp_path, "val/cnn")) == 5
    assert len(TwoAFC(tmp_path)) == 1 + 5 + 5 * 2


def test_offline_only_an_archive_brought_by_hand_is_used(whole, tmp_path):
    with pytest.raises(DownloadError, match=r"RLPIPS_OFFLINE forbids .*dataset/twoafc_val.tar.gz"):
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
        pytest.raises(DownloadError, match="the disk is full: .*another disk"),
    ):
        download("bapps-val", tmp_path, url=server.url("good"))
    (tmp_path / "twoafc_val.tar.gz.part").unlink()
    (tmp_path / "twoafc_val.tar.gz").write_bytes(whole)
    monkeypatch.undo()

    def full(source, target):
        Path("/dev/full").write_text("x")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(DownloadError, match="the disk is full: .* unpacks to; free some space"):
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
