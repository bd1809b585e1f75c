"""What a command could not measure, and how it says so: in one line for each kind of failure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlpips.cli.options import tell

_NAMED = 3  # of a kind; the JSON names all


@dataclass(frozen=True)
class Failure:
    """A file, or a pair of files, that could not be measured, and why."""

    file: Path
    problem: str
    other: Path | None = None

    @property
    def name(self) -> str:
        """What the problem is about."""
        return str(self.file) if self.other is None else f"{self.file} and {self.other}"

    @property
    def kind(self) -> str:
        """The problem but for names and numbers, which differ from failure to failure."""
        return re.sub(r"\d+", "#", self.problem.removeprefix(f"{self.file}:")) + str(self.other is None)

    def to_json(self) -> dict[str, str]:
        """Return the failure as a report holds it."""
        about = "" if self.other is None else f"and {self.other}: "
        return {"file": str(self.file), "problem": about + self.problem}


def tell_failures(failures: Iterable[Failure]) -> None:
    """Tell the first failure of each kind, how many more there are, and what some of them are about."""
    kinds: dict[str, list[Failure]] = {}
    for failure in failures:
        kinds.setdefault(failure.kind, []).append(failure)
    for first, *others in kinds.values():
        more = f" (and {len(others)} more: {_list(others, _NAMED - 1)})" if others else ""
        tell(first.problem + more, first.name if first.other is None else f"{first.name}:")


def tell_left_out(files: Sequence[Path]) -> None:
    """Tell how many files are no images, and name some."""
    if files:
        what = (
            "1 file that is no image was"
            if len(files) == 1
            else f"{len(files)} files that are no images were"
        )
        tell(f"{what} left out: {_list([Failure(path, '') for path in files], _NAMED)}")


def _list(failures: Sequence[Failure], most: int) -> str:
    return ", ".join(each.name for each in failures[:most]) + (", ..." if len(failures) > most else "")
