"""A folder beside a report that keeps finished measurements, so that an interrupted run can go on."""

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
    """The results of one measurement.

    Attributes:
        columns: numbers for each example, by name.
        images: the attacked images of the worst examples, by position in the data set.
    """

    columns: dict[str, Array]
    images: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)


# The names of our files, and of the temporary files that `write_atomically` leaves if it is killed.
_OUR_FILES = re.compile(r"[0-9a-f]{16}\.npz|\.[0-9a-f]{16}\.npz\.\w+")


class ResultCache:
    """Keeps results in the folder `OUTPUT.parts` until the report is written.

    Only the first process reads and writes files.

    Args:
        output: the report's file. Without one, or if it is a device or a pipe, nothing is kept.
        processes: the processes that measure together.

    Raises:
        FileExistsError: a file has the name of the folder.
    """

    def __init__(self, output: Path | None = None, processes: Processes | None = None) -> None:
        self._folder: Path | None = None
        if output is not None and (output.is_file() or not output.exists()):
            file = output.resolve()
            self._folder = file.with_name(file.name + ".parts")
            if self._folder.exists() and not self._folder.is_dir():
                raise FileExistsError(
                    f"{self._folder} is in the way: a folder of this name keeps results until "
                    f"{output} is written; move that file, or write to another"
                )
        self._processes = processes or Processes()

    def get(self, key: Mapping[str, Any], measure: Callable[[], Measurements]) -> Measurements:
        """Return the result that an earlier run kept under this key, or measure it and keep it.

        If the file is damaged, a warning says so, and the result is measured again.

        Args:
            key: everything that the result depends on, except the versions of rlpips and torch.
            measure: measures the result. All processes call it if no result is there.

        Raises:
            OSError: the result cannot be written.
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
        """Delete the results, now that the report is written. Other files in the folder stay."""
        if self._folder is None or not self._folder.is_dir():
            return
        with suppress(OSError):  # for example, the folder is not empty
            for path in self._folder.iterdir():
                if _OUR_FILES.fullmatch(path.name) and path.is_file():
                    path.unlink()
            self._folder.rmdir()


def _read(path: Path) -> Measurements | None:
    if not path.exists():
        return None
    content = read_with_digest(path)
    if content is None:
        logger.warning("%s is damaged; its results are measured again", shown_path(path))
        return None
    with np.load(io.BytesIO(content)) as file:
        arrays = {name.partition(":")[::2]: file[name] for name in file.files}
    return Measurements(
        {name: array for (kind, name), array in arrays.items() if kind == "column"},
        {int(name): array for (kind, name), array in arrays.items() if kind == "image"},
    )


def _write(path: Path, measured: Measurements) -> None:
    arrays: dict[str, Any] = {f"column:{name}": array for name, array in measured.columns.items()}
    arrays |= {f"image:{position}": image for position, image in measured.images.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.parent.mkdir(exist_ok=True)
    write_with_digest(path, buffer.getvalue())
