"""The folder of a training run: which run it is, its tables, and the state to go on from."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlpips.errors import CheckpointError, printable
from rlpips.hub.nested import load_nested, save_nested
from rlpips.system.files import shown_path, write_atomically


class RunFolder:
    """A run's folder: `run.json`, tables, `state.safetensors`, `samples`, at the end `metric.safetensors`.

    Args:
        path: the folder.
        description: what the run is, for JSON. Two runs differ if their sections 'recipe', 'data' or
            'teachers' differ.
    """

    def __init__(self, path: Path, description: Mapping[str, Any]) -> None:
        self.path = path
        self.description = description

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder, or check that it holds this run, and let no other process train in it.

        Raises:
            CheckpointError: `run.json` is damaged.
            OSError: the folder cannot be made.
            ValueError: the folder holds another run or other files, or another process trains in it.
        """
        from filelock import FileLock, Timeout

        file = self.path / "run.json"
        # a run that was killed while it wrote its first file leaves only hidden files
        files = list(self.path.iterdir()) if self.path.exists() else []
        if not file.exists() and any(not each.name.startswith(".") for each in files):
            raise ValueError(f"{self.path} is not empty, and holds no run; choose another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")  # the system releases it when the process ends, even if killed
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"another process trains in {self.path}; wait until it ends, or choose another folder"
            ) from None
        try:
            if file.exists():
                self._compare(file)
            else:
                write_atomically(file, (json.dumps(self.description, indent=2) + "\n").encode())
            yield
        finally:
            lock.release()

    def _compare(self, file: Path) -> None:
        """Refuse to go on if the folder's description is not that of this run."""
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
            sections = {name: dict(there[name]) for name in ("recipe", "data", "teachers")}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{file} is damaged; choose another folder") from error
        changed = []
        for section, old in sections.items():
            new = json.loads(json.dumps(self.description[section]))
            changed += [
                f"{section}.{printable(key)} was {printable(repr(old.get(key)))} and is now {new.get(key)!r}"
                for key in {**old, **new}
                if old.get(key) != new.get(key)
            ]
        if changed:
            begin = (
                f" (--weights {self.state_file} begins with its metric)" if self.state_file.exists() else ""
            )
            raise ValueError(
                f"{self.path} holds another run: {'; '.join(changed)}. "
                f"Use the same recipe and data to go on with it, or another folder{begin}"
            )

    @property
    def state_file(self) -> Path:
        """The file of the state."""
        return self.path / "state.safetensors"

    def load_state(self) -> dict[str, Any] | None:
        """Read the state to go on from, or return None if there is none yet.

        Raises:
            CheckpointError: the file is damaged, or has weights that are not finite.
        """
        if not self.state_file.exists():
            return None
        try:
            state = load_nested(self.state_file)
        except CheckpointError as error:
            raise self.damaged() from error
        if not isinstance(state, dict):
            raise self.damaged()
        if not all(torch.isfinite(each).all() for each in _tensors(state)):
            raise CheckpointError(
                f"{shown_path(self.state_file)} has weights that are not finite: the run had diverged "
                "when it was saved; delete it to start the run from its beginning"
            )
        return state

    def damaged(self) -> CheckpointError:
        """Return the error of a state that cannot be used."""
        return CheckpointError(
            f"{shown_path(self.state_file)} is damaged; delete it to start the run from its beginning"
        )

    def save_state(self, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Write the state, whole or not at all. The file is also a checkpoint of the metric.

        Args:
            state: everything that the run needs to go on.
            weights: the state dict of the metric that the run would end with now.
        """
        save_nested(self.state_file, state, weights, self.description)

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a table as CSV, with a column for each key of any row."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / name, text.getvalue().encode())


def _tensors(value: Any) -> Iterator[Tensor]:
    """Find the tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each)
