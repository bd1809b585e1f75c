"""Files that are written whole or not at all, files that end in their digest, and paths that are no files."""

import hashlib
import os
import re
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from rlpips.errors import CheckpointError, printable


def shown_path(path: Path) -> str:
    """Return a path as messages show it."""
    return printable(str(path), 4096)


def check_regular(path: Path) -> None:
    """Refuse what is not a file: pipes and devices may never end.

    Raises:
        FileNotFoundError: there is nothing.
        CheckpointError: it is a folder, a pipe or a device.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {shown_path(path)}")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise CheckpointError(f"{shown_path(path)} is {kind}, not a file")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole, or leave it untouched.

    The data go to a temporary file, which is then renamed. If the path is a link, the file that it points to
    is written. A device, a pipe or a descriptor of this process ('/dev/stdout', '/dev/fd/3') is written to
    directly.

    Raises:
        OSError: the file cannot be written, or the disk is full. Nothing is left behind.
    """
    descriptor = descriptor_of(path)
    if descriptor is not None:
        if sys.stdout is not None:
            sys.stdout.flush()  # what was printed comes first
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        return
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            file.write(data)
        return
    target = Path(os.path.realpath(path))
    # The temporary name begins like the file's. It is cut, as a name must not be too long.
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:48]}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp lets only the owner read
        Path(temporary).replace(target)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise


def write_with_digest(path: Path, data: bytes) -> None:
    """Write data and then their SHA-256 (32 bytes) to a file, whole or not at all.

    Raises:
        OSError: the file cannot be written, or the disk is full.
    """
    write_atomically(path, data + hashlib.sha256(data).digest())


def read_with_digest(path: Path) -> bytes | None:
    """Return the data that `write_with_digest` wrote, or None if the file is damaged.

    Raises:
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    data, digest = content[:-32], content[-32:]
    return data if hashlib.sha256(data).digest() == digest else None


def descriptor_of(path: Path) -> int | None:
    """Return the descriptor in a path such as '/dev/stdout' or '/dev/fd/3', None for any other path."""
    text = {"/dev/stdout": "/dev/fd/1", "/dev/stderr": "/dev/fd/2"}.get(str(path), str(path))
    found = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", text)
    return int(found[1]) if found else None
