"""Checkpoint files: what is in one, whether it fits an architecture, and this package's own format.

A checkpoint brings a backbone, heads, or both. Whatever the file calls its tensors, they have one name here:
backbone tensors are called as in torchvision (`features.3.weight`), heads are a list of `(1, C, 1, 1)`.

The package's own format is a `torch.save` of `{"rlpips": 1, "metadata": {...}, "state_dict": {...}}`, whose
metadata are JSON values that say what the file is.
"""

import bisect
import hashlib
import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlpips.backbones import ARCHITECTURES, Architecture
from rlpips.errors import CheckpointError
from rlpips.files import write_atomically

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
_FORMAT = 1


@dataclass
class Contents:
    """What a checkpoint brings: a backbone, heads, neither (the standard ones are meant) or both."""

    backbone: dict[str, Tensor] | None = None
    heads: list[Tensor] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def load(path: Path, *, mmap: bool = False) -> Any:
    """Load a PyTorch file on the CPU, refusing everything but tensors and plain containers.

    Args:
        path: the file.
        mmap: read tensors from disk only as they are used, where the file's format allows it.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a PyTorch file, is damaged, or holds pickled code.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        return torch.load(path, "cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was not loaded: it is not a PyTorch file, is damaged, or holds Python objects besides "
            "tensors, which could run code. If you trust it, save its state_dict() alone."
        ) from error
    except Exception as error:  # damaged bytes make the unpickler raise almost anything
        raise CheckpointError(
            f"{path} is not a PyTorch file, or is damaged ({type(error).__name__}: {_first_line(error)})"
        ) from error


def save(path: Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a checkpoint in the package's own format, atomically.

    Raises:
        OSError: it could not be written.
    """
    buffer = io.BytesIO()
    tensors = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    torch.save({"rlpips": _FORMAT, "metadata": dict(metadata), "state_dict": tensors}, buffer)
    write_atomically(path, buffer.getvalue())


def unpack(loaded: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split what `load` returned into a state dict and metadata, which only the package's own format has.

    Raises:
        CheckpointError: it is neither a state dict nor of that format.
    """
    metadata: dict[str, Any] = {}
    if isinstance(loaded, Mapping) and "rlpips" in loaded:
        if loaded["rlpips"] != _FORMAT:
            raise CheckpointError(
                f"{path} is of format {loaded['rlpips']!r}, this version of rlpips reads format {_FORMAT}"
            )
        metadata, loaded = loaded.get("metadata", {}), loaded.get("state_dict")
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path} holds no state dict; it looks like {_guess_container(loaded)}")
    state = {str(key): value for key, value in loaded.items()}
    if state and all(key.startswith("module.") for key in state):  # saved from within DataParallel
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state, metadata


def read(path: Path, arch: Architecture, *, mmap: bool = False) -> Contents:
    """Read a checkpoint for an architecture; nothing in it may be unknown, missing or of another shape.

    Accepted are heads (`linK.model.1.weight`), state dicts of `lpips` and R-LPIPS, with or without
    `scaling_layer`, torchvision's models, of which the classifier is left out, and the package's own format.
    In all of them every key may begin with `module.`, and heads may lack dropout's place (`model.0`).

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a checkpoint for this architecture; the message says what is wrong and what
            the file seems to be.
    """
    state, metadata = unpack(load(path, mmap=mmap), path)
    return parse(state, arch, path, metadata)


def parse(state: Mapping[str, Tensor], arch: Architecture, path: Path, metadata: dict[str, Any]) -> Contents:
    """Sort the tensors of a state dict, as `read` does."""
    backbone: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    problems: list[str] = []
    unknown: list[str] = []
    for key, value in state.items():
        if match := re.fullmatch(r"features\.\d+\..+", key):
            backbone[key] = value
        elif (match := re.fullmatch(r"net\.slice(\d+)\.(\d+)\.(.+)", key)) and (
            bisect.bisect_right(arch.ends, int(match[2])) + 1 == int(match[1])
        ):
            backbone[f"features.{match[2]}.{match[3]}"] = value
        elif match := re.fullmatch(r"lins?\.?(\d+)\.model\.[01]\.weight", key):
            earlier = heads.setdefault(match[1], value)
            if not torch.equal(earlier, value):
                problems.append(f"lin{match[1]} and lins.{match[1]} differ")
        elif key in ("scaling_layer.shift", "scaling_layer.scale"):
            constant = torch.tensor(SHIFT if key.endswith("shift") else SCALE)
            if value.numel() != 3 or not torch.allclose(value.flatten().float(), constant, atol=1e-3):
                problems.append(f"{key} is not LPIPS'")
        elif not key.startswith("classifier."):
            unknown.append(key)
    expected_backbone = backbone_shapes(arch)
    expected_heads = {str(k): (1, c, 1, 1) for k, c in enumerate(arch.channels)}
    if not backbone and not heads:
        unknown = list(state)
    missing: list[str] = []
    for found, expected, label in ((backbone, expected_backbone, ""), (heads, expected_heads, "lin")):
        if found:
            missing += [label + key for key in expected if key not in found]
            unknown += [label + key for key in found if key not in expected]
            problems += [
                f"{label}{key} has shape {tuple(found[key].shape)}, not {shape}"
                for key, shape in expected.items()
                if key in found and tuple(found[key].shape) != shape
            ]
            problems += [
                f"{label}{key} is not finite floating point"
                for key, value in found.items()
                if not (value.is_floating_point() and bool(torch.isfinite(value).all()))
            ]
    if missing:
        problems.append(f"missing: {_shorten(missing)}")
    if unknown:
        problems.append(f"unknown: {_shorten(unknown)}")
    if problems or not (backbone or heads):
        raise CheckpointError(
            f"{path} is not a checkpoint for net={arch.name!r}; it looks like {_guess(state)}. "
            + "; ".join(problems)
        )
    ordered = [heads[key] for key in expected_heads] if heads else None
    return Contents(backbone or None, ordered, metadata)


def backbone_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of each of a backbone's tensors, by torchvision's names."""
    with torch.device("meta"):
        layers = torch.nn.Sequential(*arch.layers())
    return {f"features.{key}": tuple(value.shape) for key, value in layers.state_dict().items()}


def tensors_digest(state: Mapping[str, Tensor]) -> str:
    """Return 'sha256:HEX' over the names, dtypes, shapes and little-endian bytes of tensors, sorted by name.

    It names the numbers, whatever kind of file they came in.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        array = state[key].detach().cpu().contiguous().numpy()
        digest.update(f"{key} {array.dtype} {array.shape}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return f"sha256:{digest.hexdigest()}"


def metric_digest(metric: object) -> str | None:
    """Digest the tensors of a metric's state dict; None for what is not a module."""
    return tensors_digest(metric.state_dict()) if isinstance(metric, torch.nn.Module) else None


def _shorten(keys: list[str], most: int = 8) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


def _guess_container(loaded: Any) -> str:
    """Say what a file without a state dict at its top seems to be."""
    if not isinstance(loaded, Mapping):
        return f"a bare {type(loaded).__name__}"
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(loaded.get(key), Mapping):
            return f"a training checkpoint, whose weights are under {key!r}: save those alone"
    if {"state", "param_groups"} <= set(loaded):
        return "the state of an optimizer"
    return f"a dictionary with {_shorten([repr(key) for key in loaded])}"


def _guess(state: Mapping[str, Tensor]) -> str:
    """Say what a state dict seems to be."""
    heads = [key for key in state if re.match(r"lins?\.?\d", key)]
    for arch in ARCHITECTURES.values():
        shapes = backbone_shapes(arch)
        for prefix, kind in (("features.", "torchvision's weights"), ("net.slice", "an LPIPS state dict")):
            found = {
                re.sub(r"^(net\.slice\d+|features)\.", "features.", k): v
                for k, v in state.items()
                if k.startswith(prefix)
            }
            same = sum(key in found and tuple(found[key].shape) == shape for key, shape in shapes.items())
            if same > len(shapes) // 2:
                return f"{kind} for net={arch.name!r}"
    if heads:
        widths = sorted({(int(re.findall(r"\d+", key)[0]), state[key].numel()) for key in heads})
        for arch in ARCHITECTURES.values():
            if [width for _, width in widths] == list(arch.channels):
                return f"LPIPS heads for net={arch.name!r}"
        return "LPIPS heads for another backbone"
    if "conv1.weight" in state and any(key.startswith("layer1.") for key in state):
        return "a ResNet"
    if any(key.startswith("features.") for key in state):
        return "a torchvision model of another architecture"
    if any(
        re.match(r"(net\.)?model\.\d+\.weight", key) and value.shape[1:] == (5, 1, 1)
        for key, value in state.items()
    ):
        return "LPIPS' ranking network, which is used only in training"
    return "a state dict of something else" if state else "an empty state dict"
