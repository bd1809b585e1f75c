"""The files of folders, and those of two folders that go together."""

from collections.abc import Mapping
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
