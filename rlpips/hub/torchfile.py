"""Reading what `torch.save` wrote, and trusting nothing in it: neither code, nor sizes, nor bytes.

`torch.load(weights_only=True)` runs no code either, but it reads no checksum, and takes memory for whatever
sizes a file claims. Here the pickle is interpreted by a table of what state dicts consist of, nothing is ever
called that a file names, every size is held against what the file contains before memory is taken for it, and
a tensor is read only when it is asked for.

There are two formats. Since torch 1.6 a file is a zip: a pickle, and a member for each storage, all with a
checksum (files saved after `torch.serialization.set_crc32_options(False)` have wrong ones, and are refused).
A file of older versions is five pickles (magic number, version, machine, content, storages' names) and then
the storages, each behind the number of its elements, without checksums.
"""

import io
import math
import pickle
import pickletools
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from rlpips.errors import CheckpointError, is_system_error, printable

_MAGIC = 0x1950A86A20F9469CFC6C
_LARGEST_PICKLE = 2**23  # bytes; that of a state dict has some thousands
_SHARING = 4  # how often a storage's bytes may be in tensors, on average; LPIPS' state dicts have heads twice

_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64,
}  # fmt: skip
_NAMED = {  # what pickles of tensors and containers name outside torch; nothing of it is called
    "collections.OrderedDict", "collections.Counter", "_codecs.encode", "builtins.bytearray", "builtins.set",
    "builtins.complex", "__builtin__.bytearray", "__builtin__.set", "__builtin__.complex",
}  # fmt: skip
_SCALARS = (str, int, float, type(None))


@dataclass(frozen=True)
class Foreign:
    """What a file holds besides plain tensors and containers, by the name that its pickle has for it."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Elements of one dtype that lie side by side in a file; a view of another begins at `start` there."""

    key: str
    dtype: torch.dtype
    count: int
    start: int
    data: Callable[["_Storage"], Tensor]


class Stored:
    """A tensor in an open file: its dtype and shape are known, and that the file holds so much."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.dtype = torch.float32
        self._place: tuple[_Storage, tuple[int, ...], int] | None = None

    def numel(self) -> int:
        """Return the number of its elements."""
        return math.prod(self.shape)

    def place(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        """Say where it lies.

        Raises:
            ValueError: the storage holds no such tensor.
        """
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or len(size) > 64 or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a tensor's shape is damaged")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count and (last >= storage.count or count > storage.count):
            raise ValueError(f"a tensor of {count} elements in a storage of {storage.count}")
        self.shape, self.dtype, self._place = tuple(size), storage.dtype, (storage, stride, offset)

    def copy_place(self, other: "Stored") -> None:
        """Lie where another tensor lies."""
        self.shape, self.dtype, self._place = other.shape, other.dtype, other._place

    def read(self) -> Tensor:
        """Read it.

        Raises:
            CheckpointError: the file is damaged there.
        """
        if self._place is None or not self.numel():
            return torch.empty(self.shape, dtype=self.dtype)
        storage, stride, offset = self._place
        return storage.data(storage).as_strided(self.shape, stride, storage.start + offset)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file and give what it holds: dicts, lists, tuples, scalars, `Stored` and `Foreign`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a PyTorch file, is damaged, or holds pickled code.
        OSError: it cannot be read now; the error names it, as do those of reading its tensors later.
    """
    check_regular(path)
    with path.open("rb") as file:
        with _named(path):
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            content = (_Zip if zipped else _Legacy)(file, path).content
        yield content


def check_regular(path: Path) -> None:
    """Refuse what is no file; pipes and devices may have no end.

    Raises:
        FileNotFoundError: there is nothing.
        CheckpointError: it is a folder, a pipe or a device.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {name(path)}")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise CheckpointError(f"{name(path)} is {kind}, not a PyTorch file")


def name(path: Path) -> str:
    """Return a path as messages show it."""
    return printable(str(path), 4096)


def filled(content: Any, path: Path) -> Any:
    """Read all tensors of what `opened` gave, and return the same containers with them.

    Raises:
        CheckpointError: the file is damaged, or holds something else than tensors and plain containers.
    """
    with _named(path):
        return _filled(content, {})


def _filled(value: Any, done: dict[int, Any]) -> Any:
    if id(value) in done:  # one object in two places stays one
        return done[id(value)]
    if isinstance(value, Foreign):
        raise pickle.UnpicklingError(value.name)
    if isinstance(value, Stored):
        done[id(value)] = value.read()
    elif isinstance(value, dict):
        done[id(value)] = {}
        done[id(value)].update((key, _filled(each, done)) for key, each in value.items())
    elif isinstance(value, list):
        done[id(value)] = []
        done[id(value)].extend(_filled(each, done) for each in value)
    elif isinstance(value, tuple):
        done[id(value)] = tuple(_filled(each, done) for each in value)
    else:
        return value
    return done[id(value)]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn whatever damaged bytes raise into an error that names the file."""
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{name(path)} was not loaded: it is not a PyTorch file, is damaged, or holds Python objects "
            f"besides tensors, which could run code ({printable(str(error))}). If you trust it, save its "
            "state_dict() alone."
        ) from error
    except Exception as error:
        if is_system_error(error):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    why = printable(f"{type(error).__name__}: {error}")
    return CheckpointError(f"{name(path)} is not a PyTorch file, or is damaged ({why})")


class _Reader:
    """What both formats share: the storages that the pickle names, and the data of those that were read."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file = file
        self.path = path
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        self.counts: dict[str, tuple[torch.dtype, int]] = {}
        self.read: dict[str, Tensor] = {}

    def unpickle(self, file: IO[bytes]) -> Any:
        """Interpret the next pickle, and hold its tensors against its storages together."""
        unpickler = _Unpickler(self.storage)
        try:
            content = unpickler.load(file)
        except MemoryError as error:  # a pickle that is whole takes little
            raise ValueError("its pickle claims to be larger than memory") from error
        bound = _SHARING * sum(dtype.itemsize * count for dtype, count in self.counts.values())
        if sum(each.dtype.itemsize * each.numel() for each in unpickler.tensors) > bound:
            raise ValueError("its tensors share few numbers many times")
        return content

    def storage(self, saved: Any) -> "_Storage | Foreign":
        """Find the storage of a persistent id: 'storage', type, key, device, elements and maybe a view."""
        if not isinstance(saved, tuple) or len(saved) not in (5, 6) or saved[0] != "storage":
            raise pickle.UnpicklingError("a persistent id that is no storage")
        kind, key, _, count = saved[1:5]
        view = saved[5] if len(saved) == 6 else None
        if not isinstance(kind, _Global) or not isinstance(key, str) or type(count) is not int:
            raise ValueError("a storage's name is damaged")
        dtype = _DTYPES.get(kind.name.rpartition(".")[2].removesuffix("Storage"))
        if dtype is None:
            return Foreign(kind.name)
        if not 0 <= count * dtype.itemsize <= self.size:
            raise ValueError(f"a storage of {count} elements in a file of {self.size} bytes")
        if self.counts.setdefault(key, (dtype, count)) != (dtype, count):
            raise ValueError("a storage has two sizes")
        self.check(key, dtype.itemsize * count)
        if view is None:
            return _Storage(key, dtype, count, 0, self.data)
        _, start, part = view
        if type(start) is not int or type(part) is not int or not 0 <= start <= start + part <= count:
            raise ValueError("a view of a storage lies outside it")
        return _Storage(key, dtype, part, start, self.data)

    def data(self, storage: _Storage) -> Tensor:
        """Return the elements of a whole storage, from the file the first time."""
        if storage.key not in self.read:
            with _named(self.path):
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
        """Refuse a storage that the file does not hold."""
        raise NotImplementedError

    def bytes(self, key: str) -> bytes:
        """Read a storage that `check` has found."""
        raise NotImplementedError


class _Zip(_Reader):
    """A file of torch 1.6 or newer; `zipfile` compares the checksum of each member that it reads."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, path)
        file.seek(-22, io.SEEK_END)
        end = file.read()  # an error of the disk here is damage to zipfile
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
                if each.file_size > _LARGEST_PICKLE:
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
        pass  # they come last, and are looked through then

    def bytes(self, key: str) -> bytes:
        place, size = self.places[key]
        self.file.seek(place)
        return self.file.read(size)


@dataclass(frozen=True)
class _Global:
    """What a pickle calls by module and name, or a type that it names."""

    name: str


class _Unpickler:
    """Interprets the opcodes that pickles of state dicts have (protocol 2), and calls nothing.

    Args:
        storage: finds what a persistent id means.
    """

    def __init__(self, storage: Callable[[Any], "_Storage | Foreign"]) -> None:
        self.storage = storage
        self.tensors: list[Stored] = []

    def load(self, file: IO[bytes]) -> Any:
        """Interpret one pickle, up to its end."""
        stack: list[Any] = []
        outer: list[list[Any]] = []  # the stacks below each mark
        memo: dict[int, Any] = {}
        start = file.tell()
        value: Any
        for opcode, value, position in pickletools.genops(file):
            if (position or 0) - start > _LARGEST_PICKLE:
                raise ValueError("its pickle is too long")
            match opcode.name:
                case "BINPUT" | "LONG_BINPUT":
                    memo[value] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[value])
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                    stack.append(value)
                case "SHORT_BINSTRING":  # of Python 2; pickletools decodes it as latin-1
                    stack.append(value.encode("latin-1").decode())
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode.name == "NEWTRUE")
                case "EMPTY_TUPLE":
                    stack.append(())
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "GLOBAL":
                    stack.append(_global(value))
                case "MARK":
                    outer.append(stack)
                    stack = []
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    if len(stack) < count:
                        raise ValueError("the pickle's stack is empty")
                    stack[-count:] = [tuple(stack[-count:])]
                case "TUPLE" | "APPENDS" | "SETITEMS":
                    items, stack = stack, outer.pop()
                    if opcode.name == "TUPLE":
                        stack.append(tuple(items))
                    elif opcode.name == "APPENDS":
                        _extend(stack[-1], items)
                    else:
                        _update(stack[-1], items[::2], items[1::2])
                case "APPEND":
                    item = stack.pop()
                    _extend(stack[-1], [item])
                case "SETITEM":
                    item, key = stack.pop(), stack.pop()
                    _update(stack[-1], [key], [item])
                case "BINPERSID":
                    stack[-1] = self.storage(stack[-1])
                case "REDUCE" | "NEWOBJ":
                    arguments = stack.pop()
                    stack[-1] = self.make(stack[-1], arguments)
                case "BUILD":
                    state = stack.pop()
                    self.build(stack[-1], state)
                case "STOP":
                    return stack.pop()
                case "PROTO":
                    pass
                case _:
                    raise pickle.UnpicklingError(f"opcode {opcode.name}")
        raise ValueError("the pickle has no end")

    def make(self, kind: Any, arguments: Any) -> Any:
        """Return what a call in the pickle stands for."""
        if not isinstance(kind, _Global) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call of what is no function")
        if kind.name == "collections.OrderedDict":
            pairs = arguments[0] if arguments else []  # Python 2 passes them
            made: dict[Any, Any] = {}
            _update(made, [key for key, _ in pairs], [value for _, value in pairs])
            return made
        if kind.name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
            storage, offset, size, stride = arguments[:4]
            flags = arguments[6] if len(arguments) > 6 else None  # of conjugated or negated views
            if not isinstance(storage, _Storage) or flags:
                return Foreign(storage.name if isinstance(storage, Foreign) else kind.name)
            return self.tensor(storage, offset, size, stride)
        if kind.name == "torch.Size":
            return tuple(*arguments)
        if kind.name == "torch._tensor._rebuild_from_type_v2" and len(arguments) == 4:  # one with attributes
            function, _, inner, _ = arguments
            return self.make(function, inner)
        if kind.name in (
            "torch._utils._rebuild_parameter",
            "torch._utils._rebuild_parameter_with_state",
            "torch.nn.parameter.Parameter",
        ):
            if arguments and isinstance(arguments[0], Stored):
                return arguments[0]
            return Foreign(kind.name) if arguments else self.tensor()
        if kind.name.rpartition(".")[2].removesuffix("Tensor") in _DTYPES and not arguments:
            return self.tensor()  # torch.FloatTensor, whose place comes next
        return Foreign(kind.name)

    def build(self, made: Any, state: Any) -> None:
        """Set the state of what was made."""
        if isinstance(made, Stored) and isinstance(state, tuple):
            if len(state) == 4 and isinstance(state[0], _Storage):  # of a tensor, before torch 0.2
                made.place(*state)
            elif len(state) == 5 and isinstance(state[0], Stored):  # of a parameter, before torch 0.4
                made.copy_place(state[0])
        elif not isinstance(made, dict | Foreign):  # a state dict's has the versions of modules
            raise pickle.UnpicklingError("a state of what has none")

    def tensor(self, *place: Any) -> Stored:
        """Make a tensor, where its place is known there."""
        made = Stored()
        if place:
            made.place(*place)
        self.tensors.append(made)
        return made


def _global(value: str) -> _Global:
    full = value.replace(" ", ".")
    if full not in _NAMED and not full.startswith("torch."):
        raise pickle.UnpicklingError(full)
    return _Global(full)


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list | Foreign):
        raise pickle.UnpicklingError("items of what is no list")
    if isinstance(target, list):
        target.extend(items)


def _update(target: Any, keys: list[Any], values: list[Any]) -> None:
    if not isinstance(target, dict | Foreign) or not all(isinstance(key, _SCALARS) for key in keys):
        raise pickle.UnpicklingError("items of what is no dictionary")  # tuples may take for ever to hash
    if isinstance(target, dict):
        target.update(zip(keys, values, strict=True))
