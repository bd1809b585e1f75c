"""Files of folders, and writing files so that no reader ever sees half of one."""

import os
import re
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def files(folder: Path) -> list[Path]:
    """List the files in a folder by name, but for hidden ones.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{folder}: {'not a folder' if folder.exists() else 'there is no such folder'}"
        )
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def partners(folder0: Path, folder1: Path) -> tuple[list[tuple[Path, Path]], list[tuple[Path, str]]]:
    """Pair the files of two folders by name, but for hidden ones.

    Returns:
        The pairs, by name; and the files that are in one folder alone, with what is wrong with each.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    named0, named1 = ({path.name: path for path in files(folder)} for folder in (folder0, folder1))
    pairs = [(path, named1[name]) for name, path in named0.items() if name in named1]
    alone = _without(named1, named0, folder1) + _without(named0, named1, folder0)
    return pairs, alone


def _without(there: Mapping[str, Path], here: Mapping[str, Path], folder: Path) -> list[tuple[Path, str]]:
    """List the files here without a partner there, in `folder`, and say so."""
    stems = {path.stem for name, path in there.items() if name not in here}
    problem = f"has no partner in {folder}"
    hint = f"{problem}, but a file there differs from it in the suffix only"
    return [
        (path, hint if path.stem in stems else problem) for name, path in here.items() if name not in there
    ]


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


def descriptor_of(path: Path) -> int | None:
    """Return the number of the open file that a path such as '/dev/stdout' or '/dev/fd/3' names."""
    text = {"/dev/stdout": "/dev/fd/1", "/dev/stderr": "/dev/fd/2"}.get(str(path), str(path))
    found = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", text)
    return int(found[1]) if found else None
