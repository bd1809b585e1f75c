import errno
import io
import itertools
import os
import pickle
import struct
import zipfile
from contextlib import nullcontext

import pytest
import torch
from peers import published

from rlpips.errors import CheckpointError
from rlpips.hub import torchfile
from rlpips.hub.stored import Stored
from rlpips.hub.tensorfiles import load_tensors


def loaded(path):
    with torchfile.opened(path) as content:
        return filled(content, {})


def filled(value, done):
    """Read all tensors in containers; one object in two places stays one."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, Stored):
        done[id(value)] = value.read()
    elif isinstance(value, dict):
        done[id(value)] = {}
        done[id(value)].update((key, filled(each, done)) for key, each in value.items())
    elif isinstance(value, list):
        done[id(value)] = []
        done[id(value)].extend(filled(each, done) for each in value)
    elif isinstance(value, tuple):
        done[id(value)] = tuple(filled(each, done) for each in value)
    else:
        return value
    return done[id(value)]


def assert_same(found, expected):
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape, found.stride()) == (
            expected.dtype,
            expected.shape,
            expected.stride(),
        )
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected)
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    else:
        assert found == expected
        assert type(found) is type(expected)


def contents():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    tagged = torch.nn.Parameter(torch.ones(2))
    tagged.tag = "attribute"
    grid = torch.randn(6, 8)
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool)
    return {
        "state dict": model.state_dict(),
        "parameters": {**dict(model.named_parameters()), "tagged": tagged},
        "optimizer": optimizer.state_dict(),
        "dtypes": {str(kind): torch.tensor([0, 1, 0, 1]).to(kind) for kind in kinds},
        "views": [grid, grid.t(), grid[2:4, ::3], grid[1, 1], torch.empty(0, 3), torch.tensor(3.0)],
        "plain": {"a": [1, -1, 2.5, None, True, 2**70, "é\x00"], 3: (1, (2,), ()), "nested": {"x": {}}},
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", contents())
def test_torchs_files_are_read_as_torch_reads_them(tmp_path, kind, zipped):
    path = tmp_path / "file.pth"
    torch.save(contents()[kind], path, _use_new_zipfile_serialization=zipped)
    assert_same(loaded(path), torch.load(path, weights_only=True))


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_the_published_heads_are_read_as_torch_reads_them(net):
    """They were written by a torch of 2018, on a GPU."""
    assert_same(loaded(published(net)), torch.load(published(net), map_location="cpu", weights_only=True))


class _Global:
    """Pickles as the global of that name, as Python 2 wrote it."""

    def __init__(self, name):
        self.name = name


class _OldPickler(pickle._Pickler):
    """Writes what torch of 2017 wrote with Python 2: byte strings, and types of tensors by name."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, str):
            self.write(b"U" + bytes([len(obj)]) + obj.encode())
        elif isinstance(obj, _Global):
            self.write(b"c" + obj.name.replace(" ", "\n").encode() + b"\n")
        elif isinstance(obj, list) and obj and obj[0] == "BUILD":
            _, kind, state = obj
            self.save(_Global(kind))
            self.write(b")\x81")
            self.save(state)
            self.write(b"b")
        elif isinstance(obj, list) and obj and obj[0] == "REDUCE":
            _, kind, arguments = obj
            self.save(_Global(kind))
            self.save(arguments)
            self.write(b"R")
        elif isinstance(obj, tuple) and obj and obj[0] == "storage":
            super().save(obj)
            self.write(b"Q")
        else:
            super().save(obj, save_persistent_id)


def old_file(content, storages):
    buffer = io.BytesIO()
    for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, content, list(storages)):
        _OldPickler(buffer, 2).dump(each)
    for values in storages.values():
        buffer.write(struct.pack("<q", len(values)) + struct.pack(f"<{len(values)}f", *values))
    return buffer.getvalue()


def test_files_of_torchs_first_year_are_read(tmp_path):
    """As torchvision's VGG16 still is: Python 2, tensors whose place is their state, views, old parameters."""
    storage = ("storage", _Global("torch.cuda FloatStorage"), "7", "cuda:0", 6, None)
    view = (*storage[:5], ("8", 2, 3))
    placed = ["BUILD", "torch FloatTensor", (storage, 1, (2, 2), (2, 1))]
    rebuilt = ["REDUCE", "torch._utils _rebuild_tensor", (view, 1, (2,), (1,))]
    pairs = [
        ["one", placed],
        ["two", rebuilt],
        ["three", ["BUILD", "torch.nn.parameter Parameter", (placed, None, None, True, None)]],
    ]
    path = tmp_path / "old.pth"
    path.write_bytes(old_file(["REDUCE", "collections OrderedDict", (pairs,)], {"7": [0, 1, 2, 3, 4, 5]}))
    found = loaded(path)
    assert_same(found["one"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert_same(found["two"], torch.tensor([3.0, 4.0]))
    assert_same(found["three"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    expected = torch.load(path, map_location="cpu", weights_only=True)
    assert_same(found, dict(expected))


def test_one_storage_stays_one(tmp_path):
    whole = torch.arange(6.0)
    torch.save({"whole": whole, "part": whole[2:4]}, tmp_path / "file.pth")
    found = loaded(tmp_path / "file.pth")
    found["whole"][2] = 9
    assert found["part"][0] == 9


def test_only_what_is_asked_for_is_read(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"small": torch.ones(2), "large": torch.ones(1000)}, path)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"\x00\x00\x80\x3f" * 100)] ^= 1
    path.write_bytes(damaged)
    with torchfile.opened(path) as content:
        assert torch.equal(content["small"].read(), torch.ones(2))
        assert content["large"].shape == (1000,)
        with pytest.raises(CheckpointError, match=r"file\.pth .*CRC"):
            content["large"].read()


def pickled(data):
    """A file of torch's, whose pickle is this."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(40))
    return buffer.getvalue()


def tensor(size, stride, offset=0, count=10):
    """A pickle of one tensor of float32, in a storage of 40 bytes."""
    storage = ("storage", _Global("torch FloatStorage"), "0", "cpu", count)
    buffer = io.BytesIO()
    function = ["REDUCE", "torch._utils _rebuild_tensor", (storage, offset, size, stride)]
    _OldPickler(buffer, 2).dump({"a": function})
    return pickled(buffer.getvalue())


def test_tensors_of_unknown_kinds_are_named_by_their_storage(tmp_path):
    storage = ("storage", _Global("torch QInt8Storage"), "0", "cpu", 40)
    buffer = io.BytesIO()
    _OldPickler(buffer, 2).dump({"a": ["REDUCE", "torch._utils _rebuild_tensor", (storage, 0, (40,), (1,))]})
    (tmp_path / "file.pth").write_bytes(pickled(buffer.getvalue()))
    with pytest.raises(
        CheckpointError, match=r"file\.pth: 'a' is not a plain tensor, but torch\.QInt8Storage"
    ):
        load_tensors(tmp_path / "file.pth")


def test_a_tensor_within_its_storage_is_read(tmp_path):
    (tmp_path / "file.pth").write_bytes(tensor((2, 3), (3, 1), 4))
    assert torch.equal(loaded(tmp_path / "file.pth")["a"], torch.zeros(2, 3))


LEVELS = [bytes([k]) for k in range(60)]
BOMBS = {
    "more than the storage": tensor((11,), (1,)),
    "behind the storage": tensor((2, 3), (3, 1), 5),
    "before the storage": tensor((2,), (1,), -1),
    "negative stride": tensor((2,), (-1,), 5),
    "stride beyond": tensor((2, 2), (9, 1)),
    "expanded": tensor((10**6, 10**6), (0, 0)),
    "ranks": tensor((2, 3), (1,)),
    "dimensions": tensor((1,) * 100, (1,) * 100),
    "storage larger than its bytes": tensor((11,), (1,), count=11),
    "storage smaller than its bytes": tensor((1,), (1,), count=9),
    "storage of exabytes": tensor((1,), (1,), count=2**60),
    "a call that takes memory": pickled(b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R."),
    "a tensor that takes memory": pickled(b"\x80\x02ctorch\nTensor\n\x8a\x05\x00\x00\x00\x00\x10\x85R."),
    "a text of 4 GB": pickled(b"\x80\x02X\xff\xff\xff\xffabc."),
    "an int of 10,000 digits": pickled(b"\x80\x02L" + b"9" * 10_000 + b"L\n."),
    "a key that takes for ever to hash": pickled(
        b"\x80\x02})\x85q\x00" + b"".join(b"h" + k + b"h" + k + b"\x86q" + n for k, n in itertools.pairwise(LEVELS)) + b"K\x01s."
    ),
    "a million lists": pickled(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
    "no end": pickled(b"\x80\x02}"),
    "an empty stack": pickled(b"\x80\x02\x86."),
    "an unknown memo": pickled(b"\x80\x02h\x05."),
}  # fmt: skip


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_what_claims_more_than_the_file_holds_is_refused_at_once(tmp_path, data):
    resource = pytest.importorskip("resource")
    path = tmp_path / "bomb.pth"
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(CheckpointError, match=r"bomb\.pth"):
        load_tensors(path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 5
    assert after.ru_maxrss - before.ru_maxrss < 500_000  # kB


@pytest.mark.parametrize(
    "kind",
    ["more than the storage", "behind the storage", "before the storage", "negative stride", "stride beyond",
     "expanded", "ranks", "dimensions", "storage larger than its bytes", "storage smaller than its bytes"],
)  # fmt: skip
def test_a_tensor_that_its_storage_does_not_hold_is_refused_before_it_is_read(tmp_path, kind):
    path = tmp_path / "bomb.pth"
    path.write_bytes(BOMBS[kind])
    with pytest.raises(CheckpointError, match=r"bomb\.pth"), torchfile.opened(path):
        pass


@pytest.mark.parametrize("how", ["deflated", "before", "behind", "twice", "spliced"])
def test_archives_that_torch_does_not_write_are_refused(tmp_path, how):
    path = tmp_path / "file.pth"
    torch.save({"a": torch.ones(100)}, path)
    data = path.read_bytes()
    if how == "before":
        path.write_bytes(data[:50] + data)
    elif how == "behind":
        path.write_bytes(data + b"x")
    elif how == "spliced":
        path.write_bytes(data[: len(data) // 2] + data)
    else:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
        doubled = pytest.warns(UserWarning, match="Duplicate") if how == "twice" else nullcontext()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if how == "deflated" else 0) as archive, doubled:
            for name, content in members + (members[-1:] if how == "twice" else []):
                archive.writestr(name, content)
    with pytest.raises(CheckpointError, match=r"file\.pth"):
        loaded(path)


def test_a_legacy_file_has_nothing_behind_its_storages(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"a": torch.ones(100)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for data in (whole + b"x", whole[:-1]):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"file\.pth"):
            loaded(path)


@pytest.mark.parametrize("count", [99, 101, -100, 2**40])
def test_a_legacy_file_has_as_many_elements_as_it_says_twice(tmp_path, count):
    path = tmp_path / "file.pth"
    torch.save({"a": torch.ones(100)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    assert whole.count(struct.pack("<q", 100)) == 1
    path.write_bytes(whole.replace(struct.pack("<q", 100), struct.pack("<q", count)))
    with pytest.raises(CheckpointError, match=r"file\.pth"):
        loaded(path)


@pytest.mark.parametrize("storages", [{}, {"7": [0, 1], "9": [2]}, {"9": [0, 1]}])
def test_a_legacy_file_has_the_storages_that_it_names_and_no_others(tmp_path, storages):
    path = tmp_path / "file.pth"
    storage = ("storage", _Global("torch FloatStorage"), "7", "cpu", 2, None)
    content = {"a": ["REDUCE", "torch._utils _rebuild_tensor", (storage, 0, (2,), (1,))]}
    path.write_bytes(old_file(content, {"7": [0, 1]}))
    assert_same(loaded(path), {"a": torch.tensor([0.0, 1.0])})
    path.write_bytes(old_file(content, storages))
    with pytest.raises(CheckpointError, match=r"file\.pth"):
        loaded(path)


def test_files_of_machines_of_the_other_byte_order_are_read(tmp_path):
    path = tmp_path / "file.pth"
    expected = {"a": torch.randn(5, 3), "b": torch.tensor([1, 2**40]), "c": torch.tensor([True, False])}
    sizes = [8, 4, 1]
    torch.save(expected, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            if "/data/" in name:
                size = {60: 4, 16: 8, 2: 1}[len(data)]
                sizes.remove(size)
                data = b"".join(data[i : i + size][::-1] for i in range(0, len(data), size))
            archive.writestr(name, b"big" if name.endswith("byteorder") else data)
    assert not sizes
    assert_same(loaded(path), expected)
    assert_same(torch.load(path, weights_only=True), expected)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, b"middle" if name.endswith("byteorder") else data)
    with pytest.raises(CheckpointError, match=r"file\.pth .*byte order"):
        loaded(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes that have names")
def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path, kind in ((tmp_path / "pipe.pth", "a pipe or a device"), (tmp_path, "a folder")):
        with pytest.raises(CheckpointError, match=f"{path} is {kind}"):
            loaded(path)
    with pytest.raises(CheckpointError, match="/dev/zero is a pipe or a device"):
        loaded(type(tmp_path)("/dev/zero"))


class Failing(io.RawIOBase):
    """A file of which a range of bytes cannot be read."""

    bad = range(0)

    def __init__(self, path):
        self.file = io.FileIO(path)

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=0):
        return self.file.seek(offset, whence)

    def readinto(self, buffer):
        start = self.file.tell()
        if start < self.bad.stop and start + len(buffer) > self.bad.start:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.file.readinto(buffer)

    def close(self):
        self.file.close()
        super().close()


@pytest.mark.parametrize("place", ["start", "numbers", "end"])
@pytest.mark.parametrize("zipped", [True, False])
def test_errors_of_the_disk_are_not_damage_and_name_the_file(tmp_path, monkeypatch, zipped, place):
    path = tmp_path / "file.pth"
    torch.save({"a": torch.ones(100_000)}, path, _use_new_zipfile_serialization=zipped)
    size = path.stat().st_size
    start = {"start": 0, "numbers": size // 2, "end": size - 1}[place]
    monkeypatch.setattr(Failing, "bad", range(start, start + 1))
    monkeypatch.setattr(type(path), "open", lambda self, _: io.BufferedReader(Failing(self)))
    with pytest.raises(OSError, match=r"Input/output error: .*file\.pth") as caught:
        loaded(path)
    assert caught.value.errno == errno.EIO
    monkeypatch.setattr(Failing, "bad", range(0))
    assert loaded(path)["a"].sum() == 100_000
