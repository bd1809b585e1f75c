"""A tensor in a file: its shape is known, and its numbers are read only when somebody asks for them."""

import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rlpips.errors import CheckpointError, is_system_error, printable
from rlpips.system.files import shown_path


class Stored(ABC):
    """A tensor in an open file. The file is known to hold as many bytes as the shape needs."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape = shape
        self.dtype = dtype

    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @abstractmethod
    def read(self) -> Tensor:
        """Read the numbers.

        Raises:
            CheckpointError: the file is damaged there.
        """


@contextmanager
def file_named(path: Path) -> Iterator[None]:
    """Turn whatever damaged bytes raise into a `CheckpointError` that names the file.

    Errors of the disk stay `OSError`, and name the file too.
    """
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{shown_path(path)} was not loaded: it is not a PyTorch or safetensors file, is damaged, or "
            f"holds Python objects besides tensors, which could run code ({printable(str(error))}). If you "
            "trust it, save its state_dict() alone."
        ) from error
    except Exception as error:
        if is_system_error(error):
            raise OSError(error.errno, error.strerror, str(path)) from error
        why = printable(f"{type(error).__name__}: {error}")
        raise CheckpointError(
            f"{shown_path(path)} is not a PyTorch or safetensors file, or is damaged ({why})"
        ) from error
