"""From a file to the checkpoint that an entry names, if the digests say that it is that checkpoint."""

from pathlib import Path

from torch import Tensor

from rlpips.backbones.architectures import ARCHITECTURES
from rlpips.errors import CheckpointError, WeightsUnavailableError
from rlpips.hub import checkpoints
from rlpips.hub.checkpoints import Checkpoint
from rlpips.hub.digests import matches, tensors_digest
from rlpips.hub.registry import WeightsEntry
from rlpips.system.files import check_regular
from rlpips.system.shared_folders import owner_note


def read_verified(entry: WeightsEntry, path: Path, advice: str | None = None) -> Checkpoint:
    """Read a checkpoint of the registry and compare its digest: of a backbone's tensors, else of the file.

    Args:
        entry: the checkpoint.
        path: its file.
        advice: what to do if the file is damaged; by default, to download it again or to reinstall rlpips.

    Raises:
        CheckpointError: the file is damaged, or something else.
        FileNotFoundError: there is no such file.
        WeightsUnavailableError: this user may not read the file.
    """
    if advice is None:
        advice = "Delete it to download it again." if entry.urls else "Reinstall rlpips."
    _check_readable(entry, path)
    arch = ARCHITECTURES[entry.net]
    if entry.kind != "backbone":
        if not matches(path, entry.digest):
            algorithm = entry.digest.partition(":")[0]
            raise _damaged(entry, path, f"its {algorithm} is not that of the registry", advice)
        prefix = f"{entry.name}." if entry.kind == "heads" else ""  # files of heads hold several
        return checkpoints.read(path, arch, prefix=prefix, pinned=True)
    try:
        checkpoint = checkpoints.read(path, arch, pinned=True)
    except CheckpointError as error:
        raise CheckpointError(f"{str(error).rstrip('.')}. {advice}") from error
    if checkpoint.backbone is None:
        raise _damaged(entry, path, "it holds no backbone", advice)
    about = kept_metadata(entry, checkpoint.backbone)
    if entry.tensors is not None:
        trusted = about["tensors"] == entry.tensors
    elif checkpoint.metadata:  # our own copy, made from a file that had the right digest
        trusted = all(checkpoint.metadata.get(key) == about[key] for key in ("source", "tensors"))
    else:
        trusted = matches(path, entry.digest)
    if not trusted:
        raise _damaged(entry, path, f"its tensors have {about['tensors']}", advice)
    return checkpoint


def kept_metadata(entry: WeightsEntry, backbone: dict[str, Tensor]) -> dict[str, str]:
    """Return the metadata of a file that keeps a backbone: its name, source, tensors and licence."""
    return {
        "name": entry.name,
        "source": entry.digest,
        "tensors": tensors_digest(backbone),
        "licence": entry.licence,
    }


def _check_readable(entry: WeightsEntry, path: Path) -> None:
    try:
        check_regular(path)
        path.open("rb").close()
    except PermissionError as error:
        raise WeightsUnavailableError(
            f"the weights {entry.name!r} cannot be read: permission denied for {path}{owner_note(path)}"
            "; let its owner run 'chmod a+r', or set RLPIPS_HOME to a folder of your own"
        ) from error


def _damaged(entry: WeightsEntry, path: Path, why: str, advice: str) -> CheckpointError:
    return CheckpointError(f"{path} is not the checkpoint {entry.name!r} or is damaged: {why}. {advice}")
