"""Pictures of examples for a report: images side by side, differences magnified."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rlpips.images import to_png
from rlpips.system.files import write_atomically

Image = npt.NDArray[np.float32]  # (3, H, W) in [-1, 1]


def magnified_difference(original: Image, changed: Image) -> Image:
    """Return `changed - original`, scaled to fill [-1, 1]; grey (0) where the images are equal."""
    change = changed.astype(np.float64) - original
    magnified: Image = (change / max(float(np.abs(change).max()), 1e-8)).astype(np.float32)
    return magnified


def save_side_by_side(path: Path, images: Sequence[Image]) -> None:
    """Write images as one PNG file, one beside the other; create its folder if it is missing.

    Raises:
        OSError: the file cannot be written.
    """
    row = np.concatenate([np.asarray(image, dtype=np.float64) for image in images], axis=2)
    pixels = np.rint((row.transpose(1, 2, 0) + 1) * 127.5).clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_png(pixels))


def file_names(labels: Sequence[str]) -> dict[str, str]:
    """Map each label to a name that every file system takes; no two names are equal."""
    names: dict[str, str] = {}
    for label in dict.fromkeys(labels):
        name = re.sub(r"[^\w.=+-]+", "-", label).strip("-.") or "unnamed"
        taken = {each.lower() for each in names.values()}
        while name.lower() in taken:
            name += "-again"
        names[label] = name
    return names
