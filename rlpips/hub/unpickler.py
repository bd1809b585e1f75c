"""Interpreting the pickle of a PyTorch file without calling anything that it names.

A pickle is a program for a small machine with a stack. Only the opcodes that state dicts consist of are
interpreted. What they would call is either one of the functions that rebuild tensors and containers, whose
work is done here, or becomes a `Foreign`, which no caller takes for a tensor.
"""

import math
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from rlpips.hub.stored import Stored

LARGEST_PICKLE = 2**23  # bytes; that of a state dict has some thousands

DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64,
}  # fmt: skip
_NAMED = {  # what pickles of tensors and containers name besides torch; none of it is called
    "collections.OrderedDict", "collections.Counter", "_codecs.encode", "builtins.bytearray", "builtins.set",
    "builtins.complex", "__builtin__.bytearray", "__builtin__.set", "__builtin__.complex",
}  # fmt: skip
_SCALARS = (str, int, float, type(None))


@dataclass(frozen=True)
class Foreign:
    """Something that is neither a plain tensor nor a container, by its name in the pickle."""

    name: str


@dataclass(frozen=True)
class Global:
    """A function or a type that a pickle names."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Elements of one dtype that lie side by side in a file.

    Attributes:
        key: the storage's name in the file.
        dtype: of its elements.
        count: how many elements it has.
        start: where it begins, in elements; not 0 for a view of another storage.
        data: reads the whole storage that `key` names.
    """

    key: str
    dtype: torch.dtype
    count: int
    start: int
    data: Callable[["Storage"], Tensor]


class PlacedTensor(Stored):
    """A tensor in a storage. Old files name the place after the tensor itself, so it may still be unknown."""

    def __init__(self) -> None:
        super().__init__((0,), torch.float32)
        self._place: tuple[Storage, tuple[int, ...], int] | None = None

    def place(self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        """Say where the tensor lies.

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

    def copy_place(self, other: "PlacedTensor") -> None:
        """Lie where another tensor lies."""
        self.shape, self.dtype, self._place = other.shape, other.dtype, other._place

    def read(self) -> Tensor:
        """Read the numbers.

        Raises:
            CheckpointError: the file is damaged there.
        """
        if self._place is None or not self.numel():
            return torch.empty(self.shape, dtype=self.dtype)
        storage, stride, offset = self._place
        return storage.data(storage).as_strided(self.shape, stride, storage.start + offset)


class Unpickler:
    """Interprets the opcodes that pickles of state dicts have (protocol 2), and calls nothing.

    Args:
        storage: returns the storage that a persistent id means.
    """

    def __init__(self, storage: Callable[[Any], "Storage | Foreign"]) -> None:
        self.storage = storage
        self.tensors: list[PlacedTensor] = []

    def load(self, file: IO[bytes]) -> Any:
        """Interpret one pickle, up to its end."""
        stack: list[Any] = []
        outer: list[list[Any]] = []  # the stacks below each mark
        memo: dict[int, Any] = {}
        start = file.tell()
        value: Any
        for opcode, value, position in pickletools.genops(file):
            if (position or 0) - start > LARGEST_PICKLE:
                raise ValueError("its pickle is too long")
            match opcode.name:
                case "BINPUT" | "LONG_BINPUT":
                    memo[value] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[value])
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                    stack.append(value)
                case "SHORT_BINSTRING":  # Python 2 wrote these; pickletools decodes them as latin-1
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
        """Return what a call in the pickle would return."""
        if not isinstance(kind, Global) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call of something that is not a function")
        if kind.name == "collections.OrderedDict":
            pairs = arguments[0] if arguments else []  # Python 2 passed the pairs
            made: dict[Any, Any] = {}
            _update(made, [key for key, _ in pairs], [value for _, value in pairs])
            return made
        if kind.name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
            storage, offset, size, stride = arguments[:4]
            flags = arguments[6] if len(arguments) > 6 else None  # set for conjugated or negated views
            if not isinstance(storage, Storage) or flags:
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
            if arguments and isinstance(arguments[0], PlacedTensor):
                return arguments[0]
            return Foreign(kind.name) if arguments else self.tensor()
        if kind.name.rpartition(".")[2].removesuffix("Tensor") in DTYPES and not arguments:
            return self.tensor()  # torch.FloatTensor; its place comes next
        return Foreign(kind.name)

    def build(self, made: Any, state: Any) -> None:
        """Apply a state to what `make` returned."""
        if isinstance(made, PlacedTensor) and isinstance(state, tuple):
            if len(state) == 4 and isinstance(state[0], Storage):  # of a tensor, before torch 0.2
                made.place(*state)
            elif len(state) == 5 and isinstance(state[0], PlacedTensor):  # of a parameter, before torch 0.4
                made.copy_place(state[0])
        elif not isinstance(made, dict | Foreign):  # the state of a state dict holds versions of modules
            raise pickle.UnpicklingError("a state of something that has none")

    def tensor(self, *place: Any) -> PlacedTensor:
        """Make a tensor, at its place if that is known."""
        made = PlacedTensor()
        if place:
            made.place(*place)
        self.tensors.append(made)
        return made


def _global(value: str) -> Global:
    full = value.replace(" ", ".")
    if full not in _NAMED and not full.startswith("torch."):
        raise pickle.UnpicklingError(full)
    return Global(full)


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list | Foreign):
        raise pickle.UnpicklingError("items of something that is not a list")
    if isinstance(target, list):
        target.extend(items)


def _update(target: Any, keys: list[Any], values: list[Any]) -> None:
    # nested tuples as keys may take for ever to hash
    if not isinstance(target, dict | Foreign) or not all(isinstance(key, _SCALARS) for key in keys):
        raise pickle.UnpicklingError("items of something that is not a dictionary")
    if isinstance(target, dict):
        target.update(zip(keys, values, strict=True))
