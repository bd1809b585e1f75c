"""Checkpoints: the tensors of a file that fit an architecture, by one name each.

A checkpoint has a backbone, heads, or both. Files call their tensors differently. Here the tensors of a
backbone have torchvision's names (`features.3.weight`), and heads are a list of `(1, C, 1, 1)`.
"""

import bisect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlpips.backbones.architectures import Architecture
from rlpips.backbones.pixels import CHANNELS, MOST_SCALES
from rlpips.errors import CheckpointError
from rlpips.hub import safetensorsfile, tensorfiles
from rlpips.hub.descriptions import backbone_shapes, describe_state, shorten
from rlpips.hub.nested import is_nested
from rlpips.hub.stored import Stored
from rlpips.system.files import shown_path

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


@dataclass
class Checkpoint:
    """The tensors of a metric, or those that a file has of them, which may be mapped from that file.

    Attributes:
        backbone: by torchvision's names, or None.
        heads: `(1, C, 1, 1)` for each slice, then for each scale of the pixels' features, or None.
        floors: `(L,)`, the floor of each layer, or None.
        metadata: what the file says about itself, if this package wrote it.
    """

    backbone: dict[str, Tensor] | None = None
    heads: list[Tensor] | None = None
    floors: Tensor | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def save(path: Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a state dict as a safetensors file of this package, whole or not at all.

    Args:
        path: of the file; '.safetensors' is the usual suffix.
        state_dict: of a metric, or some of its tensors, on any device.
        metadata: JSON values that say what the file is. A file with 'version' is refused for another version.

    Raises:
        OSError: the file cannot be written.
        TypeError: metadata are not JSON values.
        ValueError: metadata are too large.
    """
    safetensorsfile.write(path, state_dict, metadata)


def read(path: Path, arch: Architecture, *, prefix: str = "", pinned: bool = False) -> Checkpoint:
    """Read a checkpoint for an architecture. No tensor may be unknown, missing or of another shape.

    It takes safetensors files and those of `torch.save`: heads (`linK.model.1.weight`), with floors or
    without, state dicts of `lpips`, R-LPIPS and this package, with or without `scaling_layer`, and
    torchvision's models, whose classifier is left out. All names may begin with `module.`, and heads may
    lack the place of dropout (`model.0`). Weights must be finite in float32, and those of heads and floors
    must not be negative.

    Args:
        path: the file.
        arch: the architecture that the checkpoint must fit.
        prefix: of the names to read, in a file that holds several checkpoints.
        pinned: the caller compares the file, or its tensors, with a digest of the registry. The values are
            accepted as they were published.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a checkpoint for this architecture; the message says what is wrong
            and what the file seems to be.
        OSError: the file cannot be read now.
    """
    with tensorfiles.opened(path, pinned=pinned) as (state, metadata):
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        checkpoint = _fit(own, arch, path, pinned=pinned)
    checkpoint.metadata = metadata
    return checkpoint


@dataclass
class _Sorted:
    """The tensors of a file, by what they are; heads by the number of their layer."""

    backbone: dict[str, Stored] = field(default_factory=dict)
    heads: dict[str, Stored] = field(default_factory=dict)
    twice: dict[str, Stored] = field(default_factory=dict)  # LPIPS' state dicts name each head twice
    floors: dict[str, Stored] = field(default_factory=dict)
    constants: dict[str, Stored] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def _sort(state: Mapping[str, Stored], arch: Architecture) -> _Sorted:
    """Tell by its name what each tensor is. Those of a classifier and of a run's state are left out."""
    found = _Sorted()
    for key, value in state.items():
        if re.fullmatch(r"features\.\d+\..+", key):
            found.backbone[key] = value
        elif (match := re.fullmatch(r"net\.slice(\d)\.(\d{1,2})\.(.+)", key)) and (
            bisect.bisect_right(arch.ends, int(match[2])) + 1 == int(match[1])
        ):
            found.backbone[f"features.{match[2]}.{match[3]}"] = value
        elif match := re.fullmatch(r"lins?\.?(\d+)\.model\.[01]\.weight", key):
            (found.twice if match[1] in found.heads else found.heads)[match[1]] = value
        elif key == "floors":
            found.floors[key] = value
        elif key in ("scaling_layer.shift", "scaling_layer.scale"):
            found.constants[key] = value
        elif not key.startswith("classifier.") and not is_nested(key):
            found.unknown.append(key)
    if not found.backbone and not found.heads:
        found.unknown = list(state)
    return found


def _fit(state: Mapping[str, Stored], arch: Architecture, path: Path, *, pinned: bool) -> Checkpoint:
    """Sort the tensors of a file, as `read` describes. Nothing is read before all shapes are right."""
    found = _sort(state, arch)
    checkpoint = Checkpoint()
    problems = _misfits(found, arch)
    if not problems:
        checkpoint.backbone = _values(found.backbone) or None
        if found.heads:
            checkpoint.heads = [found.heads[str(k)].read() for k in range(len(found.heads))]
        if found.floors:
            checkpoint.floors = found.floors["floors"].read()
        problems = _contradictions(found, checkpoint.heads)
        if not pinned:
            problems += _faults(checkpoint)
    if problems or not (found.backbone or found.heads):
        raise CheckpointError(
            f"{shown_path(path)} is not a checkpoint for net={arch.name!r}; "
            f"it looks like {describe_state(state)}. {shorten(problems, sep='; ')}"
        )
    return checkpoint


def _misfits(found: _Sorted, arch: Architecture) -> list[str]:
    """Say which tensors have a wrong shape or kind, and which are missing or unknown."""
    # layers of pixels come after those of the backbone, without a gap
    most = range(len(arch.channels), len(arch.channels) + MOST_SCALES)
    scales = max((k + 1 - len(arch.channels) for k in most if str(k) in found.heads), default=0)
    channels = (*arch.channels, *scales * [CHANNELS])
    heads = {str(k): (1, each, 1, 1) for k, each in enumerate(channels)}
    floors = {"floors": (len(channels),)}
    missing, unknown = [], list(found.unknown)
    problems: list[str] = []
    for tensors, expected, label in (
        (found.backbone, backbone_shapes(arch), ""),
        (found.heads, heads, "lin"),
    ):
        if tensors:
            missing += [label + key for key in expected if key not in tensors]
            unknown += [label + key for key in tensors if key not in expected]
            problems += _wrong_kinds(tensors, expected, label)
    problems += _wrong_kinds(found.twice, heads, "lins.")
    problems += _wrong_kinds(found.floors, floors, "")
    if missing:
        problems.append(f"missing: {shorten(missing)}")
    if unknown:
        problems.append(f"unknown: {shorten(unknown)}")
    return problems


def _wrong_kinds(
    tensors: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]], label: str
) -> list[str]:
    """Say which tensors have a wrong shape, or are not floating point."""
    problems = []
    for key, shape in expected.items():
        if key in tensors and tensors[key].shape != shape:
            problems.append(f"{label}{key} has shape {tensors[key].shape}, not {shape}")
        elif key in tensors and not tensors[key].dtype.is_floating_point:
            problems.append(f"{label}{key} is not finite floating point, but {tensors[key].dtype}")
    return problems


def _contradictions(found: _Sorted, heads: list[Tensor] | None) -> list[str]:
    """Say which tensors differ from what is known of them: from the same head, or from LPIPS' constants."""
    problems = [
        f"lin{key} and lins.{key} differ"
        for key, value in _values(found.twice).items()
        if heads is not None and not torch.equal(heads[int(key)], value)
    ]
    return problems + [
        f"{key} is not LPIPS'" for key, value in found.constants.items() if not _is_constant(key, value)
    ]


def _faults(checkpoint: Checkpoint) -> list[str]:
    """Say which weights no metric can have."""
    heads = {f"lin{k}": value for k, value in enumerate(checkpoint.heads or [])}
    floors = {} if checkpoint.floors is None else {"floors": checkpoint.floors}
    problems = [
        f"{key} is not finite in float32"
        for key, value in {**(checkpoint.backbone or {}), **heads, **floors}.items()
        if not torch.isfinite(value.float()).all()
    ]
    return (
        problems
        + [
            f"{key} has negative weights, which would make distances negative; in training, clamp heads at 0"
            for key, value in heads.items()
            if (value < 0).any()
        ]
        + [f"{key} has negative values" for key, value in floors.items() if (value < 0).any()]
    )


def _is_constant(key: str, value: Stored) -> bool:
    """Tell whether this is what `ScalingLayer` has by that name."""
    constant = torch.tensor(SHIFT if key.endswith("shift") else SCALE)
    return (
        value.numel() == 3
        and value.dtype.is_floating_point
        and torch.allclose(value.read().flatten().float(), constant, atol=1e-3)
    )


def _values(found: Mapping[str, Stored]) -> dict[str, Tensor]:
    return {key: value.read() for key, value in found.items()}
