"""The named checkpoints: where each comes from, how it is verified, how it was trained. Data, not code."""

import difflib
import functools
import json
from dataclasses import dataclass, field
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
        size: the file's size in bytes, None where it is not known.
        digest: of the file, as 'ALGORITHM:HEX'; 'git-blob-sha1' is git's object id.
        tensors: digest of a backbone's tensors (`rlpips.checkpoints.tensors_digest`), None if not pinned.
        licence: licence of the numbers.
        paper: where they were published.
        recipe: how they were trained, where that is known.
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


def robust_default(net: str) -> str:
    """Return the name of the robust checkpoint that `weights='robust'` stands for.

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
    """Say which names are most like `name`: `special` ones, and those of the registry."""
    names = [*special, *list_weights()]
    alike = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(map(repr, alike))}?" if alike else f"the names are {', '.join(names)}"


def entry(name: str) -> WeightsEntry:
    """Look a checkpoint up.

    Raises:
        ValueError: no such name; the message names those most alike.
    """
    if name not in list_weights():
        raise ValueError(f"there are no weights named {name!r}: {suggestion(name)}")
    return list_weights()[name]
