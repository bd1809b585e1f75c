"""The photos of a robustness report: a square from the middle of each."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlpips.errors import ImageError
from rlpips.images import read_image, to_tensor

Pixels = npt.NDArray[np.uint8]  # (H, W, 3)


@dataclass(frozen=True)
class Crops:
    """Square crops of photos. A crop's position in the lists is its image id.

    Attributes:
        names: the names of the photos' files.
        pixels: the crops, `(size, size, 3)`, uint8.
        skipped: for each file that was left out, the reason.
    """

    names: list[str]
    pixels: list[Pixels]
    skipped: dict[str, str]

    def checksum(self) -> str:
        """Return the SHA-256 of all pixels."""
        digest = hashlib.sha256()
        for pixels in self.pixels:
            digest.update(pixels.data)
        return digest.hexdigest()


def load_crops(photos: Sequence[Path], size: int, limit: int | None) -> Crops:
    """Read the first photos, up to `limit` of them, that can be used, and cut a square from each.

    Raises:
        ImageError: no photo can be used.
        OSError: the system cannot read a photo. It is not skipped, as the sample would then be another.
    """
    crops = Crops([], [], {})
    for path in photos:
        if len(crops.pixels) == limit:
            break
        try:
            image = read_image(path)
        except ImageError as error:
            crops.skipped[str(path)] = str(error)
            continue
        height, width = image.shape[:2]
        if min(height, width) < size:
            crops.skipped[str(path)] = (
                f"{height} x {width} pixels are too few for a crop of {size} x {size} (height x width)"
            )
            continue
        top, left = (height - size) // 2, (width - size) // 2
        crops.names.append(path.name)
        crops.pixels.append(image[top : top + size, left : left + size].copy())
    if not crops.pixels:
        reason = "".join(f"; {path}: {why}" for path, why in list(crops.skipped.items())[:1])
        raise ImageError(f"there is no image to measure{reason}")
    return crops


def to_batch(pixels: Sequence[Pixels], device: torch.device) -> Tensor:
    """Turn crops into a batch `(N, 3, H, W)` in [-1, 1]."""
    return to_tensor(np.stack(pixels))[0].to(device)
