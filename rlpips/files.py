"""Files of folders, and writing files so that no reader ever sees half of one."""

import os
import tempfile
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
    alone = [(path, f"has no partner in {folder1}") for name, path in named0.items() if name not in named1]
    alone += [(path, f"has no partner in {folder0}") for name, path in named1.items() if name not in named0]
    return pairs, alone


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path` and then rename it, so `path` is whole or untouched.

    Raises:
        OSError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes files that only their owner reads
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
