"""The worst of what was measured: the examples on which a metric does worst, and the strongest attacks."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rlpips.evaluation.pictures import Image
from rlpips.evaluation.result_cache import Array, Measurements
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


def worst_of(
    cases: Sequence[Measurements], names: Sequence[str], badness: Callable[..., Array]
) -> Measurements:
    """Take each example from the case in which it is worst.

    Args:
        cases: measurements of the same examples, such as under several attacks.
        names: the columns that `badness` takes.
        badness: computes how bad each example is, `(N,)`. Where it is NaN in all cases, the first is taken.
    """
    values = np.stack([badness(*(case.columns[name] for name in names)) for case in cases])
    worst = np.where(np.isnan(values), -np.inf, values).argmax(axis=0)
    rows = np.arange(len(worst))
    columns = {name: np.stack([case.columns[name] for case in cases])[worst, rows] for name in names}
    images = {i: image for k, case in enumerate(cases) for i, image in case.images.items() if worst[i] == k}
    return Measurements(columns, images)
