"""Judged images, all brought to one size."""

from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from rlpips.images import resize


class Judgements(Protocol):
    """What reports need of a data set of judgements, such as `TwoAFC`."""

    subsets: tuple[str, ...]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def subset_of(self, index: int) -> str:
        """Return the name of the subset that holds an example."""

    def name_of(self, index: int) -> str:
        """Return an example's full name."""

    def group_of(self, index: int) -> str:
        """Return the group of an example, which intervals resample as a whole."""


class Resized(Dataset[dict[str, Any]]):
    """A data set of judgements whose images have all been resized, bilinearly with antialiasing.

    Args:
        judgements: the data set.
        size: the height and width of all images.
    """

    def __init__(self, judgements: Judgements, size: tuple[int, int]) -> None:
        self._judgements, self._size = judgements, size
        self.subsets = judgements.subsets
        self.subset_of = judgements.subset_of
        self.name_of = judgements.name_of
        self.group_of = judgements.group_of

    def __len__(self) -> int:
        return len(self._judgements)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: self._resized(value) for name, value in self._judgements[index].items()}

    def _resized(self, value: Any) -> Any:
        """Resize an image; leave the judgement and the rest alone."""
        is_image = isinstance(value, Tensor) and value.ndim == 3 and len(value) == 3
        # Rounding may lead a little out of the range, in which attacks must stay.
        return resize(value[None], self._size)[0].clamp(-1, 1) if is_image else value
