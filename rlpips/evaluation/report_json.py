"""What the JSON of every report has in common."""

import math
import platform
from collections.abc import Mapping
from typing import Any

import torch

from rlpips._version import __version__


def finite_or_none(value: Any) -> Any:
    """Return a document of dicts, lists and numbers with None for every number that is not finite."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def report_header(
    seed: int, digests: Mapping[str, str | None], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what every report's JSON begins with.

    Args:
        seed: of all that is random.
        digests: for each metric the digest of its tensors, None for what is not a module.
        settings: what else the numbers depend on.
    """
    return {
        "rlpips": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seed": seed,
        "digests": dict(digests),
        "settings": dict(settings),
    }
