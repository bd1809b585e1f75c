"""Reading any safetensors file, and writing those of this package.

A safetensors file is the length of a header, the header, and the bytes of the tensors. The header is JSON:
the dtype, shape and place of each tensor, and metadata. Nothing in such a file can be executed. The library
`safetensors` checks that the tensors fill the file without gaps or overlaps, and maps them into memory.

This package writes one text of metadata, named 'rlpips': the JSON of `{"format": 1, "digest": "sha256:...",
"metadata": {...}}`. The digest is of metadata and tensors. A file that has this text and another digest was
damaged, and is refused.
"""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rlpips.errors import CheckpointError, printable
from rlpips.hub.digests import tensors_digest
from rlpips.hub.stored import Stored, file_named
from rlpips.system.files import shown_path, write_atomically

_FORMAT = 1
_KEY = "rlpips"
_LARGEST_HEADER = 2**22  # bytes; that of a metric has some thousands

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


class _MappedTensor(Stored):
    """A tensor of an open safetensors file."""

    def __init__(self, file: Any, key: str, path: Path) -> None:
        found = file.get_slice(key)
        kind = found.get_dtype()
        if kind not in _DTYPES:
            raise ValueError(f"{key} is of dtype {kind}")
        super().__init__(tuple(found.get_shape()), _DTYPES[kind])
        self._file, self._key, self._path = file, key, path

    def read(self) -> Tensor:
        """Return the numbers where they are mapped into memory."""
        with file_named(self._path):
            tensor: Tensor = self._file.get_tensor(self._key)
            return tensor


@dataclass(frozen=True)
class SafetensorsContent:
    """What an open safetensors file holds.

    Attributes:
        tensors: by name.
        metadata: JSON values that say what the file is; only files of this package have them.
        digest: of metadata and tensors, as the file states it; None if the file is not this package's.
        path: of the file.
    """

    tensors: dict[str, Stored]
    metadata: dict[str, Any]
    digest: str | None
    path: Path

    def check(self) -> None:
        """Compare a file of this package with its digest, which reads all of it.

        Raises:
            CheckpointError: the file is damaged.
        """
        if self.digest is None:
            return
        with file_named(self.path):
            found = _digest(self.metadata, {key: each.read() for key, each in self.tensors.items()})
        if found != self.digest:
            raise CheckpointError(
                f"{shown_path(self.path)} is damaged: rlpips wrote it, and its content does not have the "
                "digest that it was written with. Use another copy of it"
            )


def looks_like_safetensors(start: bytes) -> bool:
    """Tell by the first 9 bytes whether a file may be a safetensors file: the header is a JSON object."""
    return start[8:9] == b"{" and not start.startswith(b"PK")


@contextmanager
def opened(path: Path) -> Iterator[SafetensorsContent]:
    """Open a safetensors file.

    Raises:
        CheckpointError: the file is damaged, or of a version of this package's format that is not known.
        OSError: the file cannot be read now.
    """
    with file_named(path), path.open("rb") as start:
        (length,) = struct.unpack("<Q", start.read(8))
        if length > _LARGEST_HEADER:
            raise ValueError(f"its header claims {length} bytes")
        try:
            name = str(path)
            name.encode()
        except UnicodeEncodeError:  # safetensors refuses such names
            name = f"/dev/fd/{start.fileno()}"
        file: Any = safetensors.safe_open(name, framework="pt")
    with file:
        with file_named(path):
            metadata, digest = _metadata((file.metadata() or {}).get(_KEY), path)
            names: list[str] = file.keys()
            tensors: dict[str, Stored] = {key: _MappedTensor(file, key, path) for key in names}
        yield SafetensorsContent(tensors, metadata, digest, path)


def _metadata(text: str | None, path: Path) -> tuple[dict[str, Any], str | None]:
    """Split the text that this package writes into metadata and digest."""
    if text is None:
        return {}, None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{shown_path(path)}: its metadata are not JSON ({printable(str(error))})"
        ) from error
    if not isinstance(found, dict) or type(found.get("format")) is not int:
        raise CheckpointError(f"{shown_path(path)} is damaged: its metadata do not say of which format it is")
    if found["format"] != _FORMAT:
        raise CheckpointError(
            f"{shown_path(path)} is of format {printable(repr(found['format']), 80)}, "
            f"this version of rlpips reads format {_FORMAT}"
        )
    metadata = found.get("metadata")
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{shown_path(path)}: its metadata are not a JSON object")
    return metadata, str(found.get("digest"))


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and metadata, whole or not at all, with a digest.

    Args:
        path: of the file.
        tensors: by name, on any device.
        metadata: JSON values.

    Raises:
        OSError: the file cannot be written.
        TypeError: metadata are not JSON values.
        ValueError: metadata are too large.
    """
    plain = json.loads(json.dumps(dict(metadata)))
    separate = _separate(tensors)
    text = json.dumps({"format": _FORMAT, "digest": _digest(plain, separate), "metadata": plain})
    data = safetensors.torch.save(separate, {_KEY: text})
    if struct.unpack("<Q", data[:8])[0] > _LARGEST_HEADER:
        raise ValueError(f"the metadata for {shown_path(path)} are too large: {len(text)} characters")
    write_atomically(path, data)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors to the CPU, contiguous, and copy those that share memory, which safetensors refuses."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        found[key] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found


def _digest(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    text = f"{json.dumps(metadata, sort_keys=True)}\0{tensors_digest(tensors)}"
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
