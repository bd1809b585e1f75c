"""What the modules of the command line share: the types of arguments, folders of files, and tables."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def positive(text: str) -> int:
    """Read a positive whole number."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def output_file(text: str) -> Path:
    """Read the path of a file that is to be written, in a folder that exists."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be written: {'it' if path.is_dir() else 'its folder'} \
{'is a folder' if path.is_dir() else 'does not exist'}"
        )
    return path


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


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align rows of text, all columns to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def write_output(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: it cannot be written; the message names it.
    """
    from rlpips.files import write_atomically

    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error
