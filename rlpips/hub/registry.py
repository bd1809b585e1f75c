"""From a name to its entry: where a checkpoint comes from, how it is verified, and how it was trained."""

import difflib
import functools
import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class WeightsEntry:
    """One named checkpoint.

    Attributes:
        name: what `LPIPS(weights=...)` and `rlpips weights` call it.
        kind: 'backbone' (convolutions only), 'heads' (the weights of channels) or 'metric' (both).
        net: the backbone it belongs to: 'alex', 'vgg' or 'squeeze'.
        version: the version of LPIPS it belongs to, '0.0' or '0.1'; None for a backbone.
        file: the file's name, at its source or in the package.
        urls: where the file is, tried in order; empty if it ships with the package.
        size: the file's size in bytes, or None if it is not known.
        digest: of the file, as 'ALGORITHM:HEX'; 'git-blob-sha1' is git's object id.
        tensors: digest of a backbone's tensors (`rlpips.hub.tensors_digest`), or None if it is not known.
        licence: licence of the numbers.
        paper: where they were published.
        recipe: how they were trained, as far as that is known.
    """

    name: str
    kind: str
    net: str
    version: str | None
    file: str
    urls: tuple[str, ...]
    size: int | None
    digest: str
    tensors: str | None
    licence: str
    paper: str
    recipe: dict[str, Any] = field(default_factory=dict)


def data_dir() -> Path:
    """Return the folder of the registry and the shipped weights.

    It is `rlpips/weights` in an installed package and `weights`, beside the package, in a source tree.
    """
    package = Path(__file__).parents[1]
    installed = package / "weights"
    return installed if installed.is_dir() else package.parent / "weights"


@functools.cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((data_dir() / "registry.json").read_text(encoding="utf-8"))
    return document


@functools.cache
def list_weights() -> dict[str, WeightsEntry]:
    """Return every named checkpoint, by name.

    >>> list_weights()["r-lpips-alex-linf-x0"].net
    'alex'
    """
    entries = {}
    for name, values in _document()["weights"].items():
        entries[name] = WeightsEntry(**{"name": name, **values, "urls": tuple(values["urls"])})
    return entries


def find(weights: str | PathLike[str], net: str, version: str) -> WeightsEntry | Path | None:
    """Return the entry or the file that `LPIPS(weights=...)` names, or None for 'standard'.

    Args:
        weights: 'standard', 'robust', a name of the registry, the path of a file, or the folder of a run.
        net: the backbone that an entry must be for, 'alex', 'vgg' or 'squeeze'.
        version: the version of LPIPS that an entry must be for.

    Raises:
        FileNotFoundError: it is a folder without `metric.safetensors`.
        ValueError: there is no such name or file, or the entry is for another backbone or version.
    """
    file = file_of(weights)
    if file is not None:
        return file
    if weights == "standard":
        return None
    found = entry(robust_default(net) if weights == "robust" else str(weights))
    if found.net != net:
        raise ValueError(f"weights {found.name!r} are for net={found.net!r}, not {net!r}")
    if found.version not in (None, version):
        raise ValueError(f"weights {found.name!r} are for version={found.version!r}, not {version!r}")
    return found


def standard_heads(net: str, version: str) -> WeightsEntry:
    """Return the entry of the heads that LPIPS' authors published."""
    return entry(f"lpips-{net}-v{version}")


def file_of(weights: str | PathLike[str]) -> Path | None:
    """Return the file that `LPIPS(weights=...)` names, or None if it names a checkpoint of the registry.

    A string is a name first, and otherwise a path. The folder of a training run stands for its
    `metric.safetensors`.

    Raises:
        FileNotFoundError: it is a folder without `metric.safetensors`.
        ValueError: a string is neither a name nor a path that exists.
    """
    if isinstance(weights, str) and weights in ("standard", "robust", *list_weights()):
        return None
    path = Path(weights).expanduser()
    if isinstance(weights, str) and not path.exists():
        raise ValueError(
            f"{weights!r} is neither a file nor a name: {suggestion(weights, 'robust', 'standard')}"
        )
    if not path.is_dir():
        return path
    file, state = path / "metric.safetensors", path / "state.safetensors"
    if file.exists():
        return file
    why = "the run has not finished" if (path / "run.json").exists() else "it is not the folder of a run"
    if state.exists():
        why += f"; its metric so far is in {state}"
    raise FileNotFoundError(f"{path} holds no metric.safetensors: {why}")


def robust_default(net: str) -> str:
    """Return the name of the robust checkpoint that `weights='robust'` stands for.

    Args:
        net: the backbone, 'alex', 'vgg' or 'squeeze'.

    Raises:
        ValueError: there is none for this backbone.
    """
    defaults: dict[str, str] = _document()["robust"]
    if net not in defaults:
        raise ValueError(
            f"there are no robust weights for net={net!r}; there are for {', '.join(defaults)}. "
            "LPIPS' own are weights='standard'"
        )
    return defaults[net]


def suggestion(name: str, *special: str) -> str:
    """Say which names are most like `name`, of the registry's names and the `special` ones."""
    names = [*special, *list_weights()]
    alike = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(map(repr, alike))}?" if alike else f"the names are {', '.join(names)}"


def entry(name: str) -> WeightsEntry:
    """Look up a checkpoint by its name.

    Raises:
        ValueError: there is no such name; the message says which names are similar.
    """
    if name not in list_weights():
        raise ValueError(f"there are no weights named {name!r}: {suggestion(name)}")
    return list_weights()[name]
