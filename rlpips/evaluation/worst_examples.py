"""The examples that a report shows: which are the worst, and pictures of them with differences magnified."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rlpips.images import to_png
from rlpips.system.files import write_atomically
from rlpips.system.processes import Processes

Image = npt.NDArray[np.float32]

WORST = 5  # how many are kept


def worst(values: npt.NDArray[np.float64]) -> list[int]:
    """Return the positions of the largest values, the largest first; NaN is none."""
    order = np.argsort(-values, kind="stable")[:WORST]
    return [int(i) for i in order if not np.isnan(values[i])]


class Worst:
    """The images with the largest values among all that are added, so that no more need be kept."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, int, Image]] = []

    def add(self, numbers: Sequence[int], values: npt.NDArray[np.float64], images: Tensor) -> None:
        """Add a batch: the images' positions in the data set, their values `(N,)`, and the images."""
        new = [(-float(values[i]), numbers[i], images[i].float().cpu().numpy()) for i in worst(values)]
        self._kept = sorted([*self._kept, *new], key=lambda example: example[:2])[:WORST]

    def images(self, processes: Processes) -> dict[int, Image]:
        """Return the images, in [-1, 1], by position, the worst first, of all processes."""
        found = [each for kept in processes.gather({processes.rank: self._kept}) for each in kept]
        best = sorted(found, key=lambda example: example[:2])[:WORST]
        return {number: image for _, number, image in best}


def difference(original: Image, changed: Image) -> Image:
    """Return the difference of images `(3, H, W)`, magnified to fill [-1, 1], grey where there is none."""
    change = changed.astype(np.float64) - original
    magnified: Image = (change / max(float(np.abs(change).max()), 1e-8)).astype(np.float32)
    return magnified


def save_side_by_side(path: Path, images: Sequence[Image]) -> None:
    """Write images `(3, H, W)` in [-1, 1] as one PNG file, in a folder that is made if need be.

    Raises:
        OSError: it cannot be written.
    """
    row = np.concatenate([np.asarray(image, dtype=np.float64) for image in images], axis=2)
    pixels = np.rint((row.transpose(1, 2, 0) + 1) * 127.5).clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_png(pixels))


def file_names(labels: Sequence[str]) -> dict[str, str]:
    """Return for each label a name that any file system takes, no two alike."""
    names: dict[str, str] = {}
    for label in dict.fromkeys(labels):
        name = re.sub(r"[^\w.=+-]+", "-", label).strip("-.") or "unnamed"
        taken = {each.lower() for each in names.values()}
        while name.lower() in taken:
            name += "-again"
        names[label] = name
    return names
