"""From an entry to its file on this machine, which is downloaded if need be.

Files are kept in `cache_folder()`. Of a backbone only the convolutions are kept.
"""

import logging
import os
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import torch

from rlpips.errors import WeightsUnavailableError
from rlpips.hub import checkpoints, downloads, registry
from rlpips.hub.checkpoints import Checkpoint
from rlpips.hub.digests import matches
from rlpips.hub.registry import WeightsEntry
from rlpips.hub.verification import kept_metadata, read_verified
from rlpips.system import locks, shared_folders
from rlpips.system.files import write_atomically

logger = logging.getLogger("rlpips")


def cache_folder() -> Path:
    """Return the folder of the cache: `RLPIPS_HOME`, or `rlpips` beside torch hub's folder."""
    if folder := os.environ.get("RLPIPS_HOME"):
        return Path(folder).expanduser()
    return Path(torch.hub.get_dir()).parent / "rlpips"


def path_of(entry: WeightsEntry) -> Path:
    """Return the file that holds a checkpoint on this machine, or that it would be downloaded to."""
    if not entry.urls:
        return registry.data_dir() / entry.file
    path = _own_path(entry)
    if not path.exists() and entry.kind == "backbone":
        from_torchvision = Path(torch.hub.get_dir()) / "checkpoints" / entry.file
        if from_torchvision.exists():
            return from_torchvision
    return path


def _own_path(entry: WeightsEntry) -> Path:
    """Return a checkpoint's place in the cache, named by the digest of its tensors, or of its file."""
    digest = (entry.tensors or entry.digest).partition(":")[2]
    suffix = ".safetensors" if entry.kind == "backbone" else Path(entry.file).suffix
    return cache_folder() / f"{entry.name}-{digest[:8]}{suffix}"


def _original(entry: WeightsEntry) -> Path:
    """Return where the downloaded file of a backbone lies until its convolutions are kept."""
    path = _own_path(entry)
    return path.with_name(path.name + ".fetched")


def _lock(entry: WeightsEntry) -> AbstractContextManager[None]:
    return locks.lock(cache_folder() / f"{entry.name}.lock", f"downloads {entry.name}")


def ensure(entry: WeightsEntry) -> Path:
    """Return the path of a checkpoint's file, and download it first if it is not on this machine.

    If several processes need the file, one of them downloads it. A file that exists is used without a lock,
    so the folder may be read-only. What earlier processes left behind is removed when it is a day old.

    Raises:
        WeightsUnavailableError: the file is not on this machine and could not be downloaded.
    """
    try:
        path = path_of(entry)
        own = _own_path(entry).name
        if path.exists():
            if entry.urls:
                shared_folders.remove_abandoned(cache_folder(), f".{own}.*", f"{own}.*")
            return path
        if downloads.offline() and not (entry.kind == "backbone" and _original(entry).exists()):
            raise _unavailable(entry, "RLPIPS_OFFLINE forbids the network")
        cache_folder().mkdir(parents=True, exist_ok=True)
        with _lock(entry):
            if not path.exists():  # another process may have downloaded it meanwhile
                shared_folders.remove_abandoned(cache_folder(), f".{own}.*")
                _download(entry, path)
    except OSError as error:
        raise _unavailable(entry, str(error)) from None  # all that there is to know
    return path


def _download(entry: WeightsEntry, path: Path) -> None:
    """Download a checkpoint to `path`. A backbone's file, of which a part is kept, may have come earlier."""
    original = _original(entry) if entry.kind == "backbone" else path
    if not (original.exists() and matches(original, entry.digest)):
        if downloads.offline():
            raise OSError("RLPIPS_OFFLINE forbids the network")
        logger.info("downloading %s from %s", entry.name, entry.urls[0])
        downloads.fetch(entry.urls, original, entry.digest, entry.size)
    if entry.kind == "backbone":
        _keep_convolutions(entry, read_verified(entry, original))
        original.unlink()


def import_file(entry: WeightsEntry, file: Path) -> Path:
    """Put a copy of a checkpoint, brought by hand, where `ensure` would have put it.

    A backbone may come in any file that `LPIPS(weights=...)` reads, if the tensors are the right ones.

    Args:
        entry: the checkpoint.
        file: the copy.

    Returns:
        The file in the cache.

    Raises:
        CheckpointError: the file is not this checkpoint.
        FileNotFoundError: there is no such file.
        OSError: the cache cannot be written.
        ValueError: this checkpoint ships with the package.
        WeightsUnavailableError: this user may not read the file.
    """
    if not entry.urls:
        raise ValueError(f"{entry.name} ships with rlpips; there is nothing to import")
    checkpoint = read_verified(entry, file, "Bring another copy.")
    cache_folder().mkdir(parents=True, exist_ok=True)
    with _lock(entry):
        if entry.kind == "backbone":
            _keep_convolutions(entry, checkpoint)
            with suppress(FileNotFoundError):
                _original(entry).unlink()
        else:
            new = _new(entry)
            write_atomically(new, file.read_bytes())
            _keep(entry, new)
    return _own_path(entry)


def verify(entry: WeightsEntry) -> None:
    """Compare a checkpoint on this machine with the digests of the registry.

    Raises:
        CheckpointError: it is damaged.
        FileNotFoundError: it is not on this machine.
        WeightsUnavailableError: this user may not read it.
    """
    read_verified(entry, path_of(entry))


def _keep_convolutions(entry: WeightsEntry, checkpoint: Checkpoint) -> None:
    assert checkpoint.backbone is not None
    new = _new(entry)
    checkpoints.save(new, checkpoint.backbone, kept_metadata(entry, checkpoint.backbone))
    _keep(entry, new)


def _new(entry: WeightsEntry) -> Path:
    """Return where a file is written, by the process that holds the lock, before it gets its name."""
    path = _own_path(entry)
    return path.with_name(path.name + ".new")


def _keep(entry: WeightsEntry, new: Path) -> None:
    """Give a finished file its permissions, and then its name."""
    shared_folders.share_file(new)
    new.replace(_own_path(entry))


def _unavailable(entry: WeightsEntry, why: str) -> WeightsUnavailableError:
    urls = "\n       ".join(entry.urls)
    return WeightsUnavailableError(
        f"the weights {entry.name!r} are not on this machine and could not be downloaded: {why}\n"
        f"  URL: {urls}\n"
        f"  file: {_own_path(entry)}\n"
        f"  To bring a copy by hand: rlpips weights import {entry.name} FILE"
    )
