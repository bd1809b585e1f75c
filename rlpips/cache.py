"""Where weights lie on this machine, and how they get there: found, fetched, imported, verified.

Files are kept in `home()`. A backbone is kept as its convolutions alone, with the digest of its tensors.
"""

import logging
import os
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from rlpips import checkpoints, downloads, registry, torchfile
from rlpips.backbones import ARCHITECTURES, Architecture
from rlpips.checkpoints import Contents
from rlpips.errors import CheckpointError, WeightsUnavailableError, printable
from rlpips.files import write_atomically
from rlpips.registry import WeightsEntry

logger = logging.getLogger("rlpips")


def home() -> Path:
    """Return the folder of the cache: `RLPIPS_HOME`, or `rlpips` beside torch hub's folder."""
    if folder := os.environ.get("RLPIPS_HOME"):
        return Path(folder).expanduser()
    return Path(torch.hub.get_dir()).parent / "rlpips"


def offline() -> bool:
    """Tell whether `RLPIPS_OFFLINE` forbids the network."""
    return os.environ.get("RLPIPS_OFFLINE", "").lower() not in ("", "0", "false", "no")


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
    """Return a checkpoint's place in the cache, named by the digest of its tensors, or of its file."""
    digest = (entry.tensors or entry.digest).partition(":")[2]
    return home() / f"{entry.name}-{digest[:8]}.pth"


def file_of(weights: str | PathLike[str]) -> Path | None:
    """Return the file that `LPIPS(weights=...)` names, or None where it names a checkpoint of the registry.

    A string is a name first, else a path; the folder of a training run stands for its `metric.pth`.

    Raises:
        FileNotFoundError: it is a folder that holds no `metric.pth`.
        ValueError: a string is neither a name nor a path that exists.
    """
    if isinstance(weights, str) and weights in ("standard", "robust", *registry.list_weights()):
        return None
    path = Path(weights).expanduser()
    if isinstance(weights, str) and not path.exists():
        raise ValueError(f"{weights!r} is neither a file nor a name: {registry.suggestion(weights)}")
    if not path.is_dir():
        return path
    if not (path / "metric.pth").exists():
        why = "the run has not finished" if (path / "run.json").exists() else "it is not the folder of a run"
        raise FileNotFoundError(f"{path} holds no metric.pth: {why}")
    return path / "metric.pth"


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
        WeightsUnavailableError: it is not on this machine and could not be fetched.
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
        WeightsUnavailableError: there is none and it could not be fetched.
    """
    contents = _read_verified(entry, ensure(entry))
    assert contents.backbone is not None
    return contents.backbone


def ensure(entry: WeightsEntry) -> Path:
    """Return the path of a checkpoint's file, fetching it if need be; of several processes, one fetches.

    Raises:
        WeightsUnavailableError: it is not on this machine and could not be fetched.
    """
    path = path_of(entry)
    if path.exists():
        return path
    if offline():
        raise _unavailable(entry, "RLPIPS_OFFLINE forbids the network")
    from filelock import FileLock

    try:
        home().mkdir(parents=True, exist_ok=True)
        with FileLock(home() / f"{entry.name}.lock"):
            if path.exists():  # another process has fetched it meanwhile
                return path
            fetched = path if entry.kind == "metric" else home() / entry.file
            logger.info("fetching %s from %s", entry.name, entry.urls[0])
            downloads.fetch(entry.urls, fetched, entry.digest, entry.size)
            if entry.kind == "backbone":
                _keep_convolutions(entry, fetched)
                fetched.unlink()
    except OSError as error:
        raise _unavailable(entry, str(error)) from None  # all that there is to know
    return path


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
    path = _own_path(entry)
    contents = _read_verified(entry, file)
    home().mkdir(parents=True, exist_ok=True)
    if entry.kind == "backbone":
        assert contents.backbone is not None
        _save_backbone(entry, contents.backbone)
    else:
        write_atomically(path, file.read_bytes())
    return path


def verify(entry: WeightsEntry) -> None:
    """Check a checkpoint that is on this machine against the registry's digests.

    Raises:
        CheckpointError: it is damaged.
        FileNotFoundError: it is not on this machine.
    """
    _read_verified(entry, path_of(entry))


def _read_verified(entry: WeightsEntry, path: Path) -> Contents:
    """Read a registered checkpoint and check its digest: of the tensors for a backbone, else of the file."""
    arch = ARCHITECTURES[entry.net]
    if entry.kind == "heads":
        return Contents(heads=_shipped_heads(entry, arch))
    if entry.kind == "metric":
        torchfile.check_regular(path)
        if not downloads.matches(path, entry.digest):
            raise _damaged(entry, path, f"its {entry.digest.partition(':')[0]} is not that of the registry")
        return checkpoints.read(path, arch, pinned=True)
    contents = checkpoints.read(path, arch, pinned=True)
    if contents.backbone is None:
        raise _damaged(entry, path, "it holds no backbone")
    digest = checkpoints.tensors_digest(contents.backbone)
    if entry.tensors is not None:
        trusted = digest == entry.tensors
    elif "tensors" in contents.metadata:  # our own file, made from one whose digest was right
        trusted = contents.metadata == _metadata(entry, contents.backbone)
    else:
        trusted = downloads.matches(path, entry.digest)
    if not trusted:
        raise _damaged(entry, path, f"its tensors have {digest}")
    return contents


def _keep_convolutions(entry: WeightsEntry, fetched: Path) -> None:
    contents = _read_verified(entry, fetched)
    assert contents.backbone is not None
    _save_backbone(entry, contents.backbone)


def _save_backbone(entry: WeightsEntry, tensors: dict[str, Tensor]) -> None:
    checkpoints.save(_own_path(entry), tensors, _metadata(entry, tensors))


def _metadata(entry: WeightsEntry, tensors: dict[str, Tensor]) -> dict[str, str]:
    return {"name": entry.name, "source": entry.digest, "tensors": checkpoints.tensors_digest(tensors)}


def _shipped_heads(entry: WeightsEntry, arch: Architecture) -> list[Tensor]:
    path = registry.data_dir() / entry.file
    if not downloads.matches(path, entry.digest):
        raise _damaged(entry, path, "its digest is not that of the registry")
    state, metadata = checkpoints.unpack(checkpoints.load(path, pinned=True), path)
    prefix = f"{entry.name}."
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    contents = checkpoints.parse(own, arch, path, metadata, pinned=True)
    assert contents.heads is not None
    return contents.heads


def _damaged(entry: WeightsEntry, path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not the checkpoint {entry.name!r} or is damaged: {why}. "
        + ("Delete it to have it fetched anew." if entry.urls else "Install rlpips anew.")
    )


def _unavailable(entry: WeightsEntry, why: str) -> WeightsUnavailableError:
    urls = "\n       ".join(entry.urls)
    return WeightsUnavailableError(
        f"the weights {entry.name!r} are not on this machine and could not be fetched: {why}\n"
        f"  URL: {urls}\n"
        f"  file: {_own_path(entry)}\n"
        f"  To bring a copy by hand: rlpips weights import {entry.name} FILE"
    )
