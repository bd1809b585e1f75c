"""The file beside a subset of triplets from which interrupted work goes on."""

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlpips.errors import DatasetError, printable
from rlpips.system.files import write_atomically

_SAVE_EVERY = 5.0  # seconds between two records of a panel's progress


@dataclass
class SubsetRecord:
    """The settings of a subset, and which candidates a panel has kept.

    Candidates are the triplets that a panel judges, numbered from 0. The k-th candidate that was kept is
    triplet k of the subset.

    Attributes:
        file: `SUBSET.json`.
        settings: everything that the triplets depend on.
        kept: the candidates that were kept, each with its votes for `p1`.
        judged: how many candidates were judged, the first ones.
    """

    file: Path
    settings: dict[str, Any]
    kept: list[tuple[int, int]] = field(default_factory=list)
    judged: int = 0
    _saved: float = 0.0

    @classmethod
    def open(cls, folder: Path, settings: dict[str, Any]) -> "SubsetRecord":
        """Read the record of a subset, or begin a new one.

        Raises:
            DatasetError: the record is damaged or missing, or the subset was made with other settings.
        """
        file = folder.with_name(f"{folder.name}.json")
        if not file.exists():
            if folder.exists() and any(folder.iterdir()):
                raise DatasetError(f"{folder} was not made here, as there is no {file.name} beside it")
            return cls(file, settings)
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            kept = [(int(candidate), int(votes)) for candidate, votes in document.get("kept", [])]
            old, judged = dict(document["settings"]), int(document.get("judged", 0))
            digest = document.get("digest")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DatasetError(f"{file} is damaged ({error}); delete it and {folder}") from error
        if "panel" in old and digest != _digest(judged, kept):
            raise DatasetError(f"{file} is damaged (its digest does not match); delete it and {folder}")
        changed = [
            f"{printable(key)} was {_shorten(old.get(key))} and is now {_shorten(settings.get(key))}"
            for key in (settings | old)
            if old.get(key) != settings.get(key)
        ]
        if changed:
            raise DatasetError(
                f"{folder} was made with other settings: {'; '.join(changed)}. "
                "Use the same settings, or another subset"
            )
        return cls(file, settings, kept, judged)

    def save(self) -> None:
        """Write the file."""
        document: dict[str, Any] = {"settings": self.settings}
        if "panel" in self.settings:
            document |= {"judged": self.judged, "kept": self.kept}
            document["digest"] = _digest(self.judged, self.kept)
        write_atomically(self.file, (json.dumps(document) + "\n").encode())
        self._saved = time.monotonic()

    def save_sometimes(self) -> None:
        """Write the file, unless that was done a moment ago."""
        if time.monotonic() - self._saved >= _SAVE_EVERY:
            self.save()


def _digest(judged: int, kept: list[tuple[int, int]]) -> str:
    return f"sha256:{hashlib.sha256(json.dumps([judged, kept]).encode()).hexdigest()}"


def _shorten(value: Any) -> str:
    """Write a setting, short enough for an error message."""
    text = "not set" if value is None else ", ".join(value) if isinstance(value, list) else str(value)
    return printable(text, 60)
