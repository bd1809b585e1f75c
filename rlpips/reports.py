"""What all reports share: what an interrupted run leaves behind, and what a report says of its making."""

import hashlib
import io
import json
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import rlpips
from rlpips.files import write_atomically
from rlpips.processes import Processes

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """What was measured in one case: columns of numbers by name, and images of the worst by position."""

    columns: dict[str, Array]
    images: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)


class Parts:
    """What a run has measured, in a folder beside the report, until that is written.

    Only the first process reads and writes.

    Args:
        output: the report's file; without one nothing is kept.
        processes: those that measure together.
    """

    def __init__(self, output: Path | None = None, processes: Processes | None = None) -> None:
        self._folder = output.with_name(output.name + ".parts") if output else None
        self._processes = processes or Processes()

    def get(self, key: Mapping[str, Any], measure: Callable[[], Measured]) -> Measured:
        """Return what an earlier run measured under this key, or measure and keep it.

        Args:
            key: all that the numbers depend on, but for the versions of rlpips and torch.
            measure: what all processes call if it is not there.

        Raises:
            OSError: it cannot be kept.
        """
        if self._folder is None:
            return measure()
        full = {**key, "rlpips": rlpips.__version__, "torch": torch.__version__}
        name = hashlib.sha256(json.dumps(full, sort_keys=True, default=str).encode()).hexdigest()[:16]
        path = self._folder / f"{name}.npz"
        found = self._processes.first(lambda: _read(path))
        if found is None:
            found = measure()
            if self._processes.rank == 0:
                _write(path, found)
        return found

    def remove(self) -> None:
        """Forget everything, once the report is written."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _read(path: Path) -> Measured | None:
    if not path.exists():
        return None
    with np.load(path) as file:
        arrays = {name.partition(":")[::2]: file[name] for name in file.files}
    return Measured(
        {name: array for (kind, name), array in arrays.items() if kind == "column"},
        {int(name): array for (kind, name), array in arrays.items() if kind == "image"},
    )


def _write(path: Path, measured: Measured) -> None:
    arrays: dict[str, Any] = {f"column:{name}": array for name, array in measured.columns.items()}
    arrays |= {f"image:{number}": image for number, image in measured.images.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, buffer.getvalue())


def header(seed: int, digests: Mapping[str, str | None], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what every report's JSON begins with.

    Args:
        seed: of all that is random.
        digests: for each metric the digest of its tensors, None for what is not a module.
        settings: what else the numbers depend on.
    """
    return {
        "rlpips": rlpips.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seed": seed,
        "digests": dict(digests),
        "settings": dict(settings),
    }
