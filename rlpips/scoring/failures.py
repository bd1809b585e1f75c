"""Files that could not be measured, and why."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Failure:
    """A file, or a pair of files, that could not be measured.

    Attributes:
        file: the file, or the first of the pair.
        problem: what is wrong.
        other: the second file of a pair.
    """

    file: Path
    problem: str
    other: Path | None = None

    def to_json(self) -> dict[str, str]:
        """Return the failure as a report's JSON holds it."""
        about = "" if self.other is None else f"and {self.other}: "
        return {"file": str(self.file), "problem": about + self.problem}
