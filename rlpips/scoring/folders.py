"""The files of a folder, and the files of two folders that belong together."""

from collections.abc import Mapping
from pathlib import Path


def visible_files(folder: Path) -> list[Path]:
    """List the files of a folder by name, without hidden ones.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{folder}: {'not a folder' if folder.exists() else 'there is no such folder'}"
        )
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def partners(folder0: Path, folder1: Path) -> tuple[list[tuple[Path, Path]], list[tuple[Path, str]]]:
    """Pair the files of two folders that have the same name, without hidden files.

    Returns:
        The pairs, sorted by name; and the files that are in one folder only, each with a message.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    by_name0, by_name1 = (
        {path.name: path for path in visible_files(folder)} for folder in (folder0, folder1)
    )
    pairs = [(path, by_name1[name]) for name, path in by_name0.items() if name in by_name1]
    unpaired = _unpaired(by_name0, by_name1, folder1) + _unpaired(by_name1, by_name0, folder0)
    return pairs, unpaired


def _unpaired(files: Mapping[str, Path], others: Mapping[str, Path], folder: Path) -> list[tuple[Path, str]]:
    """List the files whose name is not among those of the others, in `folder`, each with a message."""
    stems = {path.stem for name, path in others.items() if name not in files}
    problem = f"has no partner in {folder}"
    hint = f"{problem}, but a file there has the same name and another suffix"
    return [
        (path, hint if path.stem in stems else problem) for name, path in files.items() if name not in others
    ]
