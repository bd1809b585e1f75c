"""The worst examples of a data set: those on which a metric does worst, with their attacked images."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rlpips.evaluation.pictures import Image
from rlpips.system.processes import Processes

WORST = 5  # how many images are kept


def worst_positions(values: npt.NDArray[np.float64]) -> list[int]:
    """Return the positions of the largest values, the largest first, without NaN."""
    order = np.argsort(-values, kind="stable")[:WORST]
    return [int(i) for i in order if not np.isnan(values[i])]


class WorstImages:
    """Keeps the 5 images with the largest values among all that are added."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, int, Image]] = []  # minus the value, position, image

    def add(self, image_ids: Sequence[int], values: npt.NDArray[np.float64], images: Tensor) -> None:
        """Add a batch.

        Args:
            image_ids: the images' positions in the data set.
            values: how bad each is, `(N,)`.
            images: `(N, 3, H, W)` in [-1, 1].
        """
        new = [
            (-float(values[i]), image_ids[i], images[i].float().cpu().numpy())
            for i in worst_positions(values)
        ]
        self._kept = sorted([*self._kept, *new], key=lambda example: example[:2])[:WORST]

    def images(self) -> dict[int, Image]:
        """Return the worst images by position, the worst first; all processes of a group must call this."""
        processes = Processes.current()
        found = [each for kept in processes.gather({processes.rank: self._kept}) for each in kept]
        best = sorted(found, key=lambda example: example[:2])[:WORST]
        return {image_id: image for _, image_id, image in best}
