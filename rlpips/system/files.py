"""Writing files so that no reader ever sees half of one, and refusing what is no file before it is opened."""

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
        raise FileNotFoundError(f"there is no checkpoint {shown_path(path)}")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise CheckpointError(f"{shown_path(path)} is {kind}, not a file")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is whole or untouched; a link to one stays, and what it leads to is written.

    The data go to a temporary file, which is then renamed. What is no regular file, such as a device, a pipe
    or a descriptor of this process ('/dev/stdout', '/dev/fd/3'), is written straight into.

    Raises:
        OSError: it cannot be written, or the disk is full; nothing is left behind.
    """
    descriptor = descriptor_of(path)
    if descriptor is not None:
        if sys.stdout is not None:
            sys.stdout.flush()  # which may be where it leads, and what was printed comes first
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        return
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            file.write(data)
        return
    target = Path(os.path.realpath(path))
    # The temporary name begins as the file's own, but a name may be as long as names can be.
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:48]}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes files that only their owner reads
        Path(temporary).replace(target)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise


def write_with_digest(path: Path, data: bytes) -> None:
    """Write a file as `write_atomically` does, with the SHA-256 of its data behind them.

    Raises:
        OSError: as from `write_atomically`.
    """
    write_atomically(path, data + hashlib.sha256(data).digest())


def read_with_digest(path: Path) -> bytes | None:
    """Read the data that `write_with_digest` wrote, or None if the file is damaged.

    Raises:
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    data, digest = content[:-32], content[-32:]
    return data if hashlib.sha256(data).digest() == digest else None


def descriptor_of(path: Path) -> int | None:
    """Return the number of the open file that a path such as '/dev/stdout' or '/dev/fd/3' names."""
    text = {"/dev/stdout": "/dev/fd/1", "/dev/stderr": "/dev/fd/2"}.get(str(path), str(path))
    found = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", text)
    return int(found[1]) if found else None
