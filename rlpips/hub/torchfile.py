"""Reading files of `torch.save` without trusting their code, sizes or bytes.

`torch.load(weights_only=True)` runs no code either, but it ignores checksums, and allocates memory for
whatever size a file claims. Here nothing is called that a file names (`unpickler`), each size is compared
with what the file holds before memory is allocated, and a tensor is read only when somebody asks for it.

There are two formats. Since torch 1.6 a file is a zip archive with a pickle and one member for each storage.
All have checksums. Files saved after `torch.serialization.set_crc32_options(False)` have wrong ones, and are
refused. An older file is five pickles (magic number, version, machine, content, names of storages), and then
the storages. Each storage follows the number of its elements. Nothing has a checksum.
"""

import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from rlpips.hub.stored import file_named
from rlpips.hub.unpickler import DTYPES, LARGEST_PICKLE, Foreign, Global, Storage, Unpickler
from rlpips.system.files import check_regular

_MAGIC = 0x1950A86A20F9469CFC6C
_SHARING = 4  # how often a storage's bytes may be in tensors, on average; LPIPS' state dicts have heads twice


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file and yield its content: dicts, lists, tuples, scalars, `Stored` and `Foreign`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a PyTorch file, is damaged, or holds pickled code.
        OSError: the file cannot be read now. The error names it, also if that happens while tensors are read.
    """
    check_regular(path)
    with path.open("rb") as file:
        with file_named(path):
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            content = (_Zip if zipped else _Legacy)(file, path).content
        yield content


class _Reader:
    """What both formats have: storages that the pickle names, and the data of those that were read."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file = file
        self.path = path
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        self.counts: dict[str, tuple[torch.dtype, int]] = {}
        self.read: dict[str, Tensor] = {}

    def unpickle(self, file: IO[bytes]) -> Any:
        """Interpret the next pickle, and compare the size of its tensors with that of its storages."""
        unpickler = Unpickler(self.storage)
        try:
            content = unpickler.load(file)
        except MemoryError as error:  # a pickle that is whole takes little
            raise ValueError("its pickle claims to be larger than memory") from error
        bound = _SHARING * sum(dtype.itemsize * count for dtype, count in self.counts.values())
        if sum(each.dtype.itemsize * each.numel() for each in unpickler.tensors) > bound:
            raise ValueError("its tensors share few numbers many times")
        return content

    def storage(self, saved: Any) -> "Storage | Foreign":
        """Find the storage of a persistent id: 'storage', type, key, device, count and perhaps a view."""
        if not isinstance(saved, tuple) or len(saved) not in (5, 6) or saved[0] != "storage":
            raise pickle.UnpicklingError("a persistent id that is not a storage")
        kind, key, _, count = saved[1:5]
        view = saved[5] if len(saved) == 6 else None
        if not isinstance(kind, Global) or not isinstance(key, str) or type(count) is not int:
            raise ValueError("a storage's name is damaged")
        dtype = DTYPES.get(kind.name.rpartition(".")[2].removesuffix("Storage"))
        if dtype is None:
            return Foreign(kind.name)
        if not 0 <= count * dtype.itemsize <= self.size:
            raise ValueError(f"a storage of {count} elements in a file of {self.size} bytes")
        if self.counts.setdefault(key, (dtype, count)) != (dtype, count):
            raise ValueError("a storage has two sizes")
        self.check(key, dtype.itemsize * count)
        if view is None:
            return Storage(key, dtype, count, 0, self.data)
        _, start, part = view
        if type(start) is not int or type(part) is not int or not 0 <= start <= start + part <= count:
            raise ValueError("a view of a storage lies outside it")
        return Storage(key, dtype, part, start, self.data)

    def data(self, storage: Storage) -> Tensor:
        """Return the elements of a whole storage, which are read from the file once."""
        if storage.key not in self.read:
            with file_named(self.path):
                itemsize = storage.dtype.itemsize
                raw = bytearray(self.bytes(storage.key))
                if self.byteorder != sys.byteorder:
                    raw = bytearray(
                        bytes(torch.frombuffer(raw, dtype=torch.uint8).view(-1, itemsize).flip(1).numpy())
                    )
                self.read[storage.key] = torch.frombuffer(raw, dtype=storage.dtype)
        return self.read[storage.key]

    byteorder = "little"

    def check(self, key: str, size: int) -> None:
        """Raise a ValueError if the file does not hold such a storage."""
        raise NotImplementedError

    def bytes(self, key: str) -> bytes:
        """Read the bytes of a storage that passed `check`."""
        raise NotImplementedError


class _Zip(_Reader):
    """A file of torch 1.6 or newer. `zipfile` checks the checksum of each member that it reads."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, path)
        file.seek(-22, io.SEEK_END)
        end = file.read()  # if the disk fails here, zipfile would call it damage
        self.archive = zipfile.ZipFile(file)
        members = self.archive.infolist()
        if not end.startswith(b"PK\x05\x06") or min(each.header_offset for each in members):
            raise ValueError("there is something before or behind the archive")
        if any(each.compress_type or each.compress_size != each.file_size for each in members):
            raise ValueError("the archive is compressed, which torch.save does not")
        if sum(each.file_size for each in members) > self.size or len(self.archive.NameToInfo) != len(
            members
        ):
            raise ValueError("the archive's members overlap")
        (root,) = (each.filename[:-8] for each in members if each.filename.endswith("/data.pkl"))
        self.prefix = f"{root}data/"
        small = {}
        for each in members:
            if not each.filename.startswith(self.prefix):
                if each.file_size > LARGEST_PICKLE:
                    raise ValueError(f"{each.filename} has {each.file_size} bytes")
                small[each.filename] = self.archive.read(each)
        self.byteorder = small.get(f"{root}byteorder", b"little").decode()
        if self.byteorder not in ("little", "big"):
            raise ValueError(f"the byte order is {self.byteorder}")
        self.content = self.unpickle(io.BytesIO(small[f"{root}data.pkl"]))

    def check(self, key: str, size: int) -> None:
        found = self.archive.getinfo(self.prefix + key).file_size
        if found != size:
            raise ValueError(f"a storage of {size} bytes has {found}")

    def bytes(self, key: str) -> bytes:
        return self.archive.read(self.prefix + key)


class _Legacy(_Reader):
    """A file of torch before 1.6, or of `_use_new_zipfile_serialization=False`."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, path)
        if self.unpickle(file) != _MAGIC:
            raise pickle.UnpicklingError("no magic number")
        for _ in ("the format's version", "the machine that wrote it"):
            self.unpickle(file)
        self.content = self.unpickle(file)
        self.places: dict[str, tuple[int, int]] = {}
        for key in self.unpickle(file):
            dtype, count = self.counts[key]
            (found,) = struct.unpack("<q", file.read(8))
            size = dtype.itemsize * count
            if found != count or file.tell() + size > self.size:
                raise ValueError(f"a storage of {count} elements is cut or damaged")
            self.places[key] = file.tell(), size
            file.seek(size, io.SEEK_CUR)
        if self.counts.keys() != self.places.keys() or file.tell() != self.size:
            raise ValueError("storages are missing, or something is behind them")

    def check(self, key: str, size: int) -> None:
        pass  # storages come last in the file, and are checked then

    def bytes(self, key: str) -> bytes:
        place, size = self.places[key]
        self.file.seek(place)
        return self.file.read(size)
