"""What is measured: pairs of pictures, each read when its turn comes.

A source, such as two folders or a table of paths, yields pairs. Reading a picture is the work of another
thread, so a picture is small until it is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rlpips.images import read_image


class Picture(Protocol):
    """An image that is read when it is asked for."""

    @property
    def name(self) -> str:
        """What reports and errors call it: a path, a URL, a member of an archive, a frame's number."""
        ...

    def read(self) -> Tensor:
        """Return it as `(3, H, W)`: uint8, or float32 in [-1, 1].

        Raises:
            ImageError: it cannot be read or measured; the message names it and says why.
            OSError: it cannot be read now; the message names it.
        """
        ...


@dataclass(frozen=True)
class FilePicture:
    """An image file."""

    path: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def read(self) -> Tensor:
        """Return it as `(3, H, W)`, uint8."""
        return torch.from_numpy(read_image(self.path)).movedim(-1, 0)


@dataclass(frozen=True)
class Pair:
    """Two pictures to compare.

    Attributes:
        a: the first.
        b: the second.
        columns: what else its row of the source holds, which is carried to its row of the result.
    """

    a: Picture
    b: Picture
    columns: Mapping[str, Any] = field(default_factory=dict)
