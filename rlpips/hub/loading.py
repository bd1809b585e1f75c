"""The road from `LPIPS(weights=...)` to tensors: name or path -> entry -> file on this machine -> tensors.

| station | function |
| --- | --- |
| what is named | `registry.find` |
| its file, which may have to be downloaded | `store.ensure` |
| its tensors, if the file is the right one and fits | `verification.read_verified`, `checkpoints.read` |

`LPIPS` copies the tensors into its module. No station calls an earlier one.
"""

from os import PathLike
from pathlib import Path

from rlpips.backbones.architectures import Architecture
from rlpips.errors import printable
from rlpips.hub import checkpoints, registry, store
from rlpips.hub.checkpoints import Checkpoint
from rlpips.hub.registry import WeightsEntry
from rlpips.hub.verification import read_verified
from rlpips.system.files import shown_path


def load(
    weights: str | PathLike[str],
    arch: Architecture,
    version: str,
    *,
    lpips: bool = True,
    pretrained: bool = True,
    pnet_rand: bool = False,
) -> Checkpoint:
    """Return the tensors that `LPIPS(weights=...)` starts with. What `weights` does not have is standard.

    Args:
        weights: 'standard', 'robust', a name of the registry, the path of a file, or the folder of a run.
        arch: the architecture that the tensors must fit.
        version: the version of LPIPS that they must be for.
        lpips: whether the metric has heads.
        pretrained: False leaves out heads that `weights` does not have.
        pnet_rand: True leaves out a backbone that `weights` does not have.

    Raises:
        FileNotFoundError: there is no such file, or it is the folder of a run that has not finished.
        ValueError: there is no such name, or it is for another architecture or version.
        CheckpointError: a file is damaged or not a checkpoint for this architecture.
        WeightsUnavailableError: weights are not on this machine and cannot be downloaded, or may not be read.
    """
    source = registry.find(weights, arch.name, version)
    checkpoint = Checkpoint() if source is None else _read(source, arch, version)
    if not lpips and checkpoint.heads is not None and checkpoint.backbone is None:
        raise ValueError(f"{weights} holds only heads, and a metric with lpips=False has none")
    if checkpoint.heads is None and lpips and pretrained:
        heads = registry.standard_heads(arch.name, version)
        checkpoint.heads = _read(heads, arch, version).heads
    if checkpoint.backbone is None and not pnet_rand:
        backbone = registry.entry(arch.checkpoint)
        checkpoint.backbone = _read(backbone, arch, version).backbone
    return checkpoint


def _read(source: WeightsEntry | Path, arch: Architecture, version: str) -> Checkpoint:
    if isinstance(source, WeightsEntry):
        return read_verified(source, store.ensure(source))
    checkpoint = checkpoints.read(source, arch)
    made_for = checkpoint.metadata.get("version", version)
    if made_for != version:
        raise ValueError(f"{shown_path(source)} is for version={printable(repr(made_for))}, not {version!r}")
    return checkpoint
