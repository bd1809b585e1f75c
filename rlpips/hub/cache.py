"""Where weights lie on this machine, and how they get there: found, fetched, imported, verified.

Files are kept in `home()`. A backbone is kept as its convolutions alone, with the digest of its tensors.
"""

import logging
import os
from contextlib import AbstractContextManager, suppress
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from rlpips.backbones.architectures import ARCHITECTURES, Architecture
from rlpips.errors import CheckpointError, WeightsUnavailableError, printable
from rlpips.hub import checkpoints, downloads, registry, torchfile
from rlpips.hub.checkpoints import Contents
from rlpips.hub.registry import WeightsEntry
from rlpips.system import locks, shared_folders
from rlpips.system.files import write_atomically

logger = logging.getLogger("rlpips")

_ANEW = "Delete it to have it fetched anew."
_REINSTALL = "Install rlpips anew."


def home() -> Path:
    """Return the folder of the cache: `RLPIPS_HOME`, or `rlpips` beside torch hub's folder."""
    if folder := os.environ.get("RLPIPS_HOME"):
        return Path(folder).expanduser()
    return Path(torch.hub.get_dir()).parent / "rlpips"


def path_of(entry: WeightsEntry) -> Path:
    """Return the file which holds a checkpoint on this machine, or would hold it once fetched."""
    if not entry.urls:
        return registry.data_dir() / entry.file
    path = _own_path(entry)
    if not path.exists() and entry.kind == "backbone":
        from_torchvision = Path(torch.hub.get_dir()) / "checkpoints" / entry.file
        if from_torchvision.exists():
            return from_torchvision
    return path


def _own_path(entry: WeightsEntry) -> Path:
    """Return a checkpoint's place in the cache, named by the digest of its tensors, or of its file.

    A backbone's name is never that of torchvision's file, which holds more and may lie in the same folder.
    """
    digest = (entry.tensors or entry.digest).partition(":")[2]
    kept = "-features" if entry.kind == "backbone" and entry.tensors is None else ""
    return home() / f"{entry.name}{kept}-{digest[:8]}.pth"


def _original(entry: WeightsEntry) -> Path:
    """Return where a backbone's file lies as it was fetched, until its convolutions are kept."""
    path = _own_path(entry)
    return path.with_name(path.name + ".fetched")


def _lock(entry: WeightsEntry) -> AbstractContextManager[None]:
    return locks.lock(home() / f"{entry.name}.lock", f"fetches {entry.name}")


def file_of(weights: str | PathLike[str]) -> Path | None:
    """Return the file that `LPIPS(weights=...)` names, or None where it names a checkpoint of the registry.

    A string is a name first, else a path; the folder of a training run stands for its `metric.safetensors`.

    Raises:
        FileNotFoundError: it is a folder that holds no `metric.safetensors`.
        ValueError: a string is neither a name nor a path that exists.
    """
    if isinstance(weights, str) and weights in ("standard", "robust", *registry.list_weights()):
        return None
    path = Path(weights).expanduser()
    if isinstance(weights, str) and not path.exists():
        alike = registry.suggestion(weights, "robust", "standard")
        raise ValueError(f"{weights!r} is neither a file nor a name: {alike}")
    if not path.is_dir():
        return path
    if not (path / "metric.safetensors").exists():
        why = "the run has not finished" if (path / "run.json").exists() else "it is not the folder of a run"
        if (path / "state.safetensors").exists():
            why += f"; its metric so far is in {path / 'state.safetensors'}"
        raise FileNotFoundError(f"{path} holds no metric.safetensors: {why}")
    return path / "metric.safetensors"


def find(weights: str | PathLike[str], arch: Architecture, version: str) -> Contents:
    """Read what `LPIPS(weights=...)` names; what it does not bring is left to the standard weights.

    Args:
        weights: 'standard', 'robust', a name of the registry, the path of a file, or the folder of a run.
        arch: the architecture it must fit.
        version: the version of LPIPS it must fit.

    Raises:
        FileNotFoundError: there is no such file, or it is the folder of a run that has not finished.
        ValueError: no such name, or it is for another architecture or version.
        CheckpointError: a file is damaged or not a checkpoint for this architecture.
        WeightsUnavailableError: it is not on this machine and could not be fetched, or may not be read.
    """
    file = file_of(weights)
    if file is not None:
        contents = checkpoints.read(file, arch)
        made_for = contents.metadata.get("version", version)
        if made_for != version:
            raise ValueError(
                f"{torchfile.name(Path(weights))} is for version={printable(repr(made_for))}, not {version!r}"
            )
        return contents
    if weights == "standard":
        return Contents()
    name = str(weights)
    entry = registry.entry(registry.robust_default(arch.name) if name == "robust" else name)
    if entry.net != arch.name:
        raise ValueError(f"weights {entry.name!r} are for net={entry.net!r}, not {arch.name!r}")
    if entry.version not in (None, version):
        raise ValueError(f"weights {entry.name!r} are for version={entry.version!r}, not {version!r}")
    if entry.kind == "heads":
        return Contents(heads=_shipped_heads(entry, arch))
    if entry.kind == "backbone":
        return Contents(backbone=backbone(entry))
    return _read_verified(entry, ensure(entry))


def standard_heads(arch: Architecture, version: str) -> list[Tensor]:
    """Return the heads that LPIPS' authors published, `(1, C, 1, 1)` for each slice."""
    return _shipped_heads(registry.entry(f"lpips-{arch.name}-v{version}"), arch)


def backbone(entry: WeightsEntry) -> dict[str, Tensor]:
    """Return a backbone's tensors, by torchvision's names, fetching them if they are not on this machine.

    Raises:
        CheckpointError: the file on this machine is damaged.
        WeightsUnavailableError: there is none and it could not be fetched, or it may not be read.
    """
    contents = _read_verified(entry, ensure(entry))
    assert contents.backbone is not None
    return contents.backbone


def ensure(entry: WeightsEntry) -> Path:
    """Return the path of a checkpoint's file, fetching it if need be; of several processes, one fetches.

    A file that is there is used without a lock, so that the folder may be read-only. What earlier processes
    left behind is removed once it is a day old.

    Raises:
        WeightsUnavailableError: it is not on this machine and could not be fetched.
    """
    try:
        path = path_of(entry)
        own = _own_path(entry).name
        if path.exists():
            if entry.urls:
                shared_folders.remove_abandoned(home(), f".{own}.*", f"{own}.*")
            return path
        if downloads.offline() and not (entry.kind == "backbone" and _original(entry).exists()):
            raise _unavailable(entry, "RLPIPS_OFFLINE forbids the network")
        home().mkdir(parents=True, exist_ok=True)
        with _lock(entry):
            if not path.exists():  # else another process has fetched it meanwhile
                shared_folders.remove_abandoned(home(), f".{own}.*")
                _fetch(entry, path)
    except OSError as error:
        raise _unavailable(entry, str(error)) from None  # all that there is to know
    return path


def _fetch(entry: WeightsEntry, path: Path) -> None:
    """Fetch a checkpoint to `path`: a backbone by way of its original, which may be there already."""
    fetched = _original(entry) if entry.kind == "backbone" else path
    if not (fetched.exists() and downloads.matches(fetched, entry.digest)):
        if downloads.offline():
            raise OSError("RLPIPS_OFFLINE forbids the network")
        logger.info("fetching %s from %s", entry.name, entry.urls[0])
        downloads.fetch(entry.urls, fetched, entry.digest, entry.size)
    if entry.kind == "backbone":
        _keep_convolutions(entry, fetched)
        fetched.unlink()


def import_file(entry: WeightsEntry, file: Path) -> Path:
    """Put a copy of a checkpoint, brought by hand, where `ensure` would have put it.

    A backbone may come in any file that `checkpoints.read` accepts, if its tensors are the right ones.

    Raises:
        CheckpointError: the file is not this checkpoint.
        FileNotFoundError: there is no such file.
        OSError: the cache cannot be written.
        ValueError: this checkpoint ships with the package.
    """
    if not entry.urls:
        raise ValueError(f"{entry.name} ships with rlpips; there is nothing to import")
    contents = _read_verified(entry, file, "Bring another copy.")
    home().mkdir(parents=True, exist_ok=True)
    with _lock(entry):
        if entry.kind == "backbone":
            assert contents.backbone is not None
            _save_backbone(entry, contents.backbone)
            with suppress(FileNotFoundError):
                _original(entry).unlink()
        else:
            new = _new(entry)
            write_atomically(new, file.read_bytes())
            _keep(entry, new)
    return _own_path(entry)


def verify(entry: WeightsEntry) -> None:
    """Check a checkpoint that is on this machine against the registry's digests.

    Raises:
        CheckpointError: it is damaged.
        FileNotFoundError: it is not on this machine.
        WeightsUnavailableError: it may not be read.
    """
    _read_verified(entry, path_of(entry))


def _read_verified(entry: WeightsEntry, path: Path, advice: str | None = None) -> Contents:
    """Read a registered checkpoint and check its digest: of the tensors for a backbone, else of the file.

    Args:
        entry: the checkpoint.
        path: its file.
        advice: what to do where the file is damaged, if it is not the cache's or the package's own.
    """
    arch = ARCHITECTURES[entry.net]
    if entry.kind == "heads":
        return Contents(heads=_shipped_heads(entry, arch))
    if advice is None:
        advice = _ANEW if entry.urls else _REINSTALL
    try:
        torchfile.check_regular(path)
        path.open("rb").close()
    except PermissionError as error:
        raise WeightsUnavailableError(
            f"the weights {entry.name!r} cannot be read: permission denied for {path}"
            f"{shared_folders.owner_note(path)}"
            "; let its owner run 'chmod a+r', or set RLPIPS_HOME to a folder of your own"
        ) from error
    if entry.kind == "metric":
        if not downloads.matches(path, entry.digest):
            why = f"its {entry.digest.partition(':')[0]} is not that of the registry"
            raise _damaged(entry, path, why, advice)
        return checkpoints.read(path, arch, pinned=True)
    try:
        contents = checkpoints.read(path, arch, pinned=True)
    except CheckpointError as error:
        raise CheckpointError(f"{str(error).rstrip('.')}. {advice}") from error
    if contents.backbone is None:
        raise _damaged(entry, path, "it holds no backbone", advice)
    digest = checkpoints.tensors_digest(contents.backbone)
    if entry.tensors is not None:
        trusted = digest == entry.tensors
    elif "tensors" in contents.metadata:  # our own file, made from one whose digest was right
        trusted = contents.metadata == _metadata(entry, contents.backbone)
    else:
        trusted = downloads.matches(path, entry.digest)
    if not trusted:
        raise _damaged(entry, path, f"its tensors have {digest}", advice)
    return contents


def _keep_convolutions(entry: WeightsEntry, fetched: Path) -> None:
    contents = _read_verified(entry, fetched)
    assert contents.backbone is not None
    _save_backbone(entry, contents.backbone)


def _save_backbone(entry: WeightsEntry, tensors: dict[str, Tensor]) -> None:
    new = _new(entry)
    checkpoints.save(new, tensors, _metadata(entry, tensors))
    _keep(entry, new)


def _new(entry: WeightsEntry) -> Path:
    """Return where a file is made that is to be kept; only the holder of the lock makes it."""
    path = _own_path(entry)
    return path.with_name(path.name + ".new")


def _keep(entry: WeightsEntry, new: Path) -> None:
    """Give a finished file its name, and before that its permissions."""
    shared_folders.share_file(new)
    new.replace(_own_path(entry))


def _metadata(entry: WeightsEntry, tensors: dict[str, Tensor]) -> dict[str, str]:
    return {"name": entry.name, "source": entry.digest, "tensors": checkpoints.tensors_digest(tensors)}


def _shipped_heads(entry: WeightsEntry, arch: Architecture) -> list[Tensor]:
    path = registry.data_dir() / entry.file
    if not downloads.matches(path, entry.digest):
        raise _damaged(entry, path, "its digest is not that of the registry", _REINSTALL)
    state, metadata = checkpoints.unpack(checkpoints.load(path, pinned=True), path)
    prefix = f"{entry.name}."
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    contents = checkpoints.parse(own, arch, path, metadata, pinned=True)
    assert contents.heads is not None
    return contents.heads


def _damaged(entry: WeightsEntry, path: Path, why: str, advice: str) -> CheckpointError:
    return CheckpointError(f"{path} is not the checkpoint {entry.name!r} or is damaged: {why}. {advice}")


def _unavailable(entry: WeightsEntry, why: str) -> WeightsUnavailableError:
    urls = "\n       ".join(entry.urls)
    return WeightsUnavailableError(
        f"the weights {entry.name!r} are not on this machine and could not be fetched: {why}\n"
        f"  URL: {urls}\n"
        f"  file: {_own_path(entry)}\n"
        f"  To bring a copy by hand: rlpips weights import {entry.name} FILE"
    )
