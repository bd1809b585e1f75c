"""What all reports share in their JSON."""

import dataclasses
import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rlpips._version import __version__
from rlpips.attacks.base import Attack


def finite_or_none(value: Any) -> Any:
    """Replace NaN and infinity by None, in a number or in a document of dicts and lists."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def report_header(
    seed: int, digests: Mapping[str, str | None], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields that every report begins with.

    Args:
        seed: of all random draws.
        digests: for each metric the digest of its tensors, None if it is not a module.
        settings: everything else that the numbers depend on.
    """
    return {
        "rlpips": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seed": seed,
        "digests": dict(digests),
        "settings": dict(settings),
    }


def attack_settings(attack: Attack) -> dict[str, Any]:
    """Return the class of an attack, as 'kind', and its settings."""
    settings = dataclasses.asdict(attack) if dataclasses.is_dataclass(attack) else vars(attack)
    return {"kind": type(attack).__name__, **settings}


def worst_of_settings(attacks: Sequence[str]) -> dict[str, Any]:
    """Return the same for the strongest of several attacks, from their names."""
    return {"kind": "WorstOf", "attacks": list(attacks)}
