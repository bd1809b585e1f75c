"""Checkpoint files: what is in one, whether it fits an architecture, and this package's own format.

A checkpoint brings a backbone, heads, or both. Whatever the file calls its tensors, they have one name here:
backbone tensors are called as in torchvision (`features.3.weight`), heads are a list of `(1, C, 1, 1)`.

The package's own format is a `torch.save` of `{"rlpips": 1, "digest": "...", "metadata": {...},
"state_dict": {...}}`, whose metadata are JSON values that say what the file is. The digest is of metadata and
tensors; without it, or with another, a file is refused.
"""

import bisect
import hashlib
import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlpips.backbones.architectures import ARCHITECTURES, Architecture
from rlpips.errors import CheckpointError, printable
from rlpips.hub.torchfile import Foreign, Stored, filled, name, opened
from rlpips.system.files import write_atomically

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
_FORMAT = 1
_MOST_METADATA = 100_000  # pieces of JSON


@dataclass
class Contents:
    """What a checkpoint brings: a backbone, heads, neither (the standard ones are meant) or both."""

    backbone: dict[str, Tensor] | None = None
    heads: list[Tensor] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def load(path: Path, *, pinned: bool = False) -> Any:
    """Load a PyTorch file on the CPU, refusing everything but tensors and plain containers.

    Args:
        path: the file.
        pinned: the caller has held the file to a digest of the registry, and it needs none inside.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a PyTorch file, is damaged, or holds pickled code.
    """
    with opened(path) as content:
        loaded = filled(content, path)
    if not pinned:
        _check_digest(loaded, path)
    return loaded


def save(path: Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a checkpoint in the package's own format, atomically.

    Raises:
        OSError: it could not be written.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    save_content(path, {"metadata": dict(metadata), "state_dict": tensors})


def save_content(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors on the CPU in plain containers of plain values, atomically and with a digest.

    Raises:
        OSError: it could not be written.
    """
    buffer = io.BytesIO()
    torch.save({"rlpips": _FORMAT, "digest": _digest(content, {}), **content}, buffer)
    write_atomically(path, buffer.getvalue())


def unpack(loaded: Any, path: Path) -> "tuple[dict[str, Tensor | Stored], dict[str, Any]]":
    """Split what `load` returned into a state dict and metadata, which only the package's own format has.

    Raises:
        CheckpointError: it is neither a state dict nor of that format.
    """
    metadata: dict[str, Any] = {}
    if _is_ours(loaded, path):
        metadata, loaded = loaded.get("metadata", {}), loaded.get("state_dict", loaded)
        _check_metadata(metadata, path)
    if isinstance(loaded, Mapping):
        for key, value in loaded.items():
            if isinstance(value, Foreign):
                raise CheckpointError(
                    f"{name(path)}: {_shown(key)} is no plain tensor, but {printable(value.name)}"
                )
    if not isinstance(loaded, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor | Stored) for key, value in loaded.items()
    ):
        raise CheckpointError(f"{name(path)} holds no state dict; it looks like {_guess_container(loaded)}")
    if loaded and all(key.startswith("module.") for key in loaded):  # saved from within DataParallel
        return {key.removeprefix("module."): value for key, value in loaded.items()}, metadata
    return dict(loaded), metadata


def read(path: Path, arch: Architecture, *, pinned: bool = False) -> Contents:
    """Read a checkpoint for an architecture; nothing in it may be unknown, missing or of another shape.

    Accepted are heads (`linK.model.1.weight`), state dicts of `lpips` and R-LPIPS, with or without
    `scaling_layer`, torchvision's models, of which the classifier is left out, and the package's own format.
    In all of them every key may begin with `module.`, and heads may lack dropout's place (`model.0`). Weights
    are finite in float32, and those of heads are not negative.

    Args:
        path: the file.
        arch: the architecture it must fit.
        pinned: the caller holds the file or its tensors to a digest of the registry; its values are taken as
            they were published.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a checkpoint for this architecture; the message says what is wrong and what
            the file seems to be.
    """
    with opened(path) as content:
        if not pinned and _is_ours(content, path):
            content = filled(content, path)
            _check_digest(content, path)
        state, metadata = unpack(content, path)
        return parse(state, arch, path, metadata, pinned=pinned)


def parse(
    state: "Mapping[str, Tensor | Stored]",
    arch: Architecture,
    path: Path,
    metadata: dict[str, Any],
    *,
    pinned: bool = False,
) -> Contents:
    """Sort the tensors of a state dict, as `read` does; only those that fit are read from the file."""
    backbone: dict[str, Tensor | Stored] = {}
    heads: dict[str, Tensor | Stored] = {}
    twice: dict[str, Tensor | Stored] = {}  # LPIPS' state dicts have each head under two names
    constants: dict[str, Tensor | Stored] = {}
    unknown: list[str] = []
    for key, value in state.items():
        if match := re.fullmatch(r"features\.\d+\..+", key):
            backbone[key] = value
        elif (match := re.fullmatch(r"net\.slice(\d)\.(\d{1,2})\.(.+)", key)) and (
            bisect.bisect_right(arch.ends, int(match[2])) + 1 == int(match[1])
        ):
            backbone[f"features.{match[2]}.{match[3]}"] = value
        elif match := re.fullmatch(r"lins?\.?(\d+)\.model\.[01]\.weight", key):
            (twice if match[1] in heads else heads)[match[1]] = value
        elif key in ("scaling_layer.shift", "scaling_layer.scale"):
            constants[key] = value
        elif not key.startswith("classifier."):
            unknown.append(key)
    expected_heads = {str(k): (1, c, 1, 1) for k, c in enumerate(arch.channels)}
    if not backbone and not heads:
        unknown = list(state)
    missing: list[str] = []
    problems: list[str] = []
    for found, expected, label in ((backbone, backbone_shapes(arch), ""), (heads, expected_heads, "lin")):
        if found:
            missing += [label + key for key in expected if key not in found]
            unknown += [label + key for key in found if key not in expected]
            problems += _misfits(found, expected, label)
    problems += _misfits(twice, expected_heads, "lins.")
    if missing:
        problems.append(f"missing: {_shorten(missing)}")
    if unknown:
        problems.append(f"unknown: {_shorten(unknown)}")
    contents = Contents(metadata=metadata)
    if not problems:  # only now is anything read
        contents.backbone = _values(backbone) or None
        contents.heads = (
            list(_values({key: heads[key] for key in expected_heads}).values()) if heads else None
        )
        problems += [
            f"lin{key} and lins.{key} differ"
            for key, value in _values(twice).items()
            if contents.heads is not None and not torch.equal(contents.heads[int(key)], value)
        ]
        problems += [
            f"{key} is not LPIPS'" for key, value in constants.items() if not _is_constant(key, value)
        ]
        if not pinned:
            problems += _faults(contents)
    if problems or not (backbone or heads):
        raise CheckpointError(
            f"{name(path)} is not a checkpoint for net={arch.name!r}; it looks like {_guess(state)}. "
            + _shorten(problems, sep="; ")
        )
    return contents


def _misfits(
    found: "Mapping[str, Tensor | Stored]", expected: Mapping[str, tuple[int, ...]], label: str
) -> list[str]:
    """Say which tensors are of a wrong shape or kind."""
    problems = []
    for key, shape in expected.items():
        if key in found and tuple(found[key].shape) != shape:
            problems.append(f"{label}{key} has shape {tuple(found[key].shape)}, not {shape}")
        elif key in found and not found[key].dtype.is_floating_point:
            problems.append(f"{label}{key} is not finite floating point, but {found[key].dtype}")
    return problems


def _faults(contents: Contents) -> list[str]:
    """Say which tensors no metric can have."""
    heads = {f"lin{k}": value for k, value in enumerate(contents.heads or [])}
    problems = [
        f"{key} is not finite in float32"
        for key, value in {**(contents.backbone or {}), **heads}.items()
        if not torch.isfinite(value.float()).all()
    ]
    return problems + [
        f"{key} has negative weights, which would make distances negative; in training, clamp heads at 0"
        for key, value in heads.items()
        if (value < 0).any()
    ]


def _is_constant(key: str, value: "Tensor | Stored") -> bool:
    """Tell whether this is what `ScalingLayer` has by that name."""
    constant = torch.tensor(SHIFT if key.endswith("shift") else SCALE)
    return (
        value.numel() == 3
        and value.dtype.is_floating_point
        and torch.allclose(_value(value).flatten().float(), constant, atol=1e-3)
    )


def _values(found: "Mapping[str, Tensor | Stored]") -> dict[str, Tensor]:
    return {key: _value(value) for key, value in found.items()}


def _value(tensor: "Tensor | Stored") -> Tensor:
    return tensor.read() if isinstance(tensor, Stored) else tensor


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
        tensor = state[key].detach().cpu().contiguous()
        array = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
        digest.update(f"{key} {str(tensor.dtype).removeprefix('torch.')} {array.shape}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return f"sha256:{digest.hexdigest()}"


def metric_digest(metric: object) -> str | None:
    """Digest the tensors of a metric's state dict; None for what is not a module."""
    return tensors_digest(metric.state_dict()) if isinstance(metric, torch.nn.Module) else None


def _is_ours(loaded: Any, path: Path) -> bool:
    """Tell whether what a file holds says that it is of the package's own format.

    Raises:
        CheckpointError: it is of a version of the format that is not known.
    """
    if not isinstance(loaded, Mapping) or "rlpips" not in loaded:
        return False
    if type(loaded["rlpips"]) is not int or loaded["rlpips"] != _FORMAT:
        raise CheckpointError(
            f"{name(path)} is of format {_shown(loaded['rlpips'])}, "
            f"this version of rlpips reads format {_FORMAT}"
        )
    return True


def _check_digest(loaded: Any, path: Path) -> None:
    """Hold a file of the package's own format to the digest in it."""
    if _is_ours(loaded, path):
        content = {key: value for key, value in loaded.items() if key not in ("rlpips", "digest")}
        if loaded.get("digest") != _digest(content, {}):
            raise CheckpointError(
                f"{name(path)} is damaged: it was written by rlpips, and its content does not have the "
                "digest that it was written with. Use another copy of it"
            )


def _digest(value: Any, done: dict[int, str]) -> str:
    """Digest tensors in containers of plain values; one object in many places is read once."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, Tensor):
        parts = [tensors_digest({"": value})]
    elif isinstance(value, Mapping):
        parts = ["dict", *(_digest(each, done) for item in value.items() for each in item)]
    elif isinstance(value, list | tuple):
        parts = ["list", *(_digest(each, done) for each in value)]
    else:
        return f"{type(value).__name__} {value!r}"
    done[id(value)] = "sha256:" + hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()
    return done[id(value)]


def _check_metadata(metadata: Any, path: Path) -> None:
    """Refuse metadata that are not a dictionary of JSON values, or too many."""
    problem = "are no dictionary"
    if isinstance(metadata, dict):
        try:
            chunks = json.JSONEncoder().iterencode(metadata)
            if len(list(itertools.islice(chunks, _MOST_METADATA))) < _MOST_METADATA:
                return
            problem = "are too many"
        except (TypeError, ValueError, RecursionError) as error:
            problem = f"are not JSON values ({printable(str(error))})"
    raise CheckpointError(f"{name(path)}: its metadata {problem}")


def _shown(value: Any) -> str:
    """Return a key or a number from a file as messages show it."""
    if isinstance(value, str | int | float):
        return printable(repr(value), 80)
    return f"a {type(value).__name__}"


def _shorten(texts: Sequence[str], most: int = 8, sep: str = ", ") -> str:
    shown = sep.join(printable(text, 1000 if sep == "; " else 80) for text in texts[:most])
    return shown + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _guess_container(loaded: Any) -> str:
    """Say what a file without a state dict at its top seems to be."""
    if not isinstance(loaded, Mapping):
        return "a bare Tensor" if isinstance(loaded, Stored) else f"a bare {type(loaded).__name__}"
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(loaded.get(key), Mapping):
            return f"a training checkpoint, whose weights are under {key!r}: save those alone"
    if {"state", "param_groups"} <= set(loaded):
        return "the state of an optimizer"
    return f"a dictionary with {_shorten([_shown(key) for key in loaded])}"


def _guess(state: "Mapping[str, Tensor | Stored]") -> str:
    """Say what a state dict seems to be."""
    heads = [key for key in state if re.match(r"lins?\.?\d{1,2}\D", key)]
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
