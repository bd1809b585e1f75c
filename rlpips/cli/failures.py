"""How a command tells what it could not measure: one line for each kind of failure."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlpips.cli.output import tell

if TYPE_CHECKING:
    from rlpips.scoring.failures import Failure

_NAMED = 3  # how many of a kind are named; JSON names all


def tell_failures(failures: Iterable["Failure"]) -> None:
    """Tell the first failure of each kind, how many more there are, and what some of them are about."""
    kinds: dict[str, list[Failure]] = {}
    for failure in failures:
        kinds.setdefault(_kind(failure), []).append(failure)
    for first, *others in kinds.values():
        more = ""
        if others:
            more = f" (and {len(others)} more: {_some([_name(each) for each in others], _NAMED - 1)})"
        tell(first.problem + more, _name(first) if first.other is None else f"{_name(first)}:")


def tell_left_out(files: Sequence[Path]) -> None:
    """Tell how many files are not images, and name some."""
    if files:
        what = "1 file that is not an image" if len(files) == 1 else f"{len(files)} files that are not images"
        tell(f"skipped {what}: {_some([str(path) for path in files], _NAMED)}")


def _name(failure: "Failure") -> str:
    """Name the file or the pair."""
    return str(failure.file) if failure.other is None else f"{failure.file} and {failure.other}"


def _kind(failure: "Failure") -> str:
    """Return the problem without the names and numbers, which differ from failure to failure."""
    problem = re.sub(r"\d+", "#", failure.problem.removeprefix(f"{failure.file}:"))
    return f"{problem} {failure.other is None}"


def _some(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
