"""Files of all formats, as named tensors. The content of a file tells its format, not its suffix."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from rlpips.errors import CheckpointError, printable
from rlpips.hub import safetensorsfile, torchfile
from rlpips.hub.descriptions import describe_container, shown_key
from rlpips.hub.stored import Stored
from rlpips.hub.unpickler import Foreign
from rlpips.system.files import check_regular, shown_path


@contextmanager
def opened(path: Path, *, pinned: bool = False) -> Iterator[tuple[dict[str, Stored], dict[str, Any]]]:
    """Open a file and yield its tensors by name, and its metadata, which only files of this package have.

    A prefix `module.` that all names have, as `DataParallel` gives them, is left out.

    Args:
        path: a safetensors file, or a state dict that `torch.save` wrote.
        pinned: the caller compares the file, or its tensors, with a digest of the registry. Otherwise, a file
            of this package is compared with the digest in it.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is of another kind, is damaged, or holds pickled code.
        OSError: the file cannot be read now.
    """
    check_regular(path)
    with path.open("rb") as file:
        start = file.read(9)
    if safetensorsfile.looks_like_safetensors(start):
        with safetensorsfile.opened(path) as content:
            if not pinned:
                content.check()
            yield _without_module(content.tensors), content.metadata
    else:
        with torchfile.opened(path) as loaded:
            yield _without_module(_state_dict(loaded, path)), {}


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file, by name, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is of another kind, is damaged, or holds pickled code.
        OSError: the file cannot be read now.
    """
    with opened(path) as (tensors, _):
        return {key: each.read().clone() for key, each in tensors.items()}  # whatever becomes of the file


def read_metadata(path: Path) -> dict[str, Any]:
    """Return what a file of this package says about itself; files of others say nothing.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is of another kind, is damaged, or holds pickled code.
        OSError: the file cannot be read now.
    """
    with opened(path) as (_, metadata):
        return metadata


def _state_dict(loaded: Any, path: Path) -> dict[str, Stored]:
    """Return the content of a PyTorch file if that is a state dict."""
    if isinstance(loaded, Mapping):
        for key, value in loaded.items():
            if isinstance(value, Foreign):
                raise CheckpointError(
                    f"{shown_path(path)}: {shown_key(key)} is not a plain tensor, but {printable(value.name)}"
                )
    if not isinstance(loaded, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Stored) for key, value in loaded.items()
    ):
        raise CheckpointError(
            f"{shown_path(path)} does not hold a state dict; it looks like {describe_container(loaded)}"
        )
    return dict(loaded)


def _without_module(state: dict[str, Stored]) -> dict[str, Stored]:
    if state and all(key.startswith("module.") for key in state):  # saved from within DataParallel
        return {key.removeprefix("module."): value for key, value in state.items()}
    return state
