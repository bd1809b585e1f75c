"""A folder of finished measurements, from which an interrupted report goes on."""

import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rlpips._version import __version__
from rlpips.system.files import read_with_digest, shown_path, write_with_digest
from rlpips.system.processes import Processes

logger = logging.getLogger("rlpips")

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measurements:
    """What was measured in one case: columns of numbers by name, and images of the worst by position."""

    columns: dict[str, Array]
    images: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)


# The names of kept parts, and of what `write_atomically` leaves of one when it is killed.
_OWN = re.compile(r"[0-9a-f]{16}\.npz|\.[0-9a-f]{16}\.npz\.\w+")


class ResultCache:
    """What a run has measured, in a folder beside the report, until that is written.

    Only the first process reads and writes.

    Args:
        output: the report's file; without one, or where it is a device or a pipe, nothing is kept.
        processes: those that measure together.

    Raises:
        FileExistsError: a file has the folder's name.
    """

    def __init__(self, output: Path | None = None, processes: Processes | None = None) -> None:
        self._folder: Path | None = None
        if output is not None and (output.is_file() or not output.exists()):
            file = output.resolve()
            self._folder = file.with_name(file.name + ".parts")
            if self._folder.exists() and not self._folder.is_dir():
                raise FileExistsError(
                    f"{self._folder} is in the way: a folder of this name keeps what is measured until "
                    f"{output} is written; move that file or write to another"
                )
        self._processes = processes or Processes()

    def get(self, key: Mapping[str, Any], measure: Callable[[], Measurements]) -> Measurements:
        """Return what an earlier run measured under this key, or measure and keep it.

        What it left in a damaged file is measured again, and a warning says so.

        Args:
            key: all that the numbers depend on, but for the versions of rlpips and torch.
            measure: what all processes call if it is not there.

        Raises:
            OSError: it cannot be kept.
        """
        if self._folder is None:
            return measure()
        full = {**key, "rlpips": __version__, "torch": torch.__version__}
        name = hashlib.sha256(json.dumps(full, sort_keys=True, default=str).encode()).hexdigest()[:16]
        path = self._folder / f"{name}.npz"
        found = self._processes.first(lambda: _read(path))
        if found is None:
            found = measure()
            if self._processes.rank == 0:
                _write(path, found)
        return found

    def remove(self) -> None:
        """Forget everything, once the report is written; what else lies in the folder stays."""
        if self._folder is None or not self._folder.is_dir():
            return
        with suppress(OSError):  # such as: the folder is not empty
            for path in self._folder.iterdir():
                if _OWN.fullmatch(path.name) and path.is_file():
                    path.unlink()
            self._folder.rmdir()


def _read(path: Path) -> Measurements | None:
    if not path.exists():
        return None
    content = read_with_digest(path)
    if content is None:
        logger.warning("%s is damaged; what it held is measured again", shown_path(path))
        return None
    with np.load(io.BytesIO(content)) as file:
        arrays = {name.partition(":")[::2]: file[name] for name in file.files}
    return Measurements(
        {name: array for (kind, name), array in arrays.items() if kind == "column"},
        {int(name): array for (kind, name), array in arrays.items() if kind == "image"},
    )


def _write(path: Path, measured: Measurements) -> None:
    arrays: dict[str, Any] = {f"column:{name}": array for name, array in measured.columns.items()}
    arrays |= {f"image:{number}": image for number, image in measured.images.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.parent.mkdir(exist_ok=True)
    write_with_digest(path, buffer.getvalue())
