"""What the triplets made from photos depend on: the photos, and the settings."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpips.data.distortions import DISTORTIONS
from rlpips.data.panel import METRICS, PANEL
from rlpips.errors import DatasetError

_RECIPE = 2  # raise it with every change that makes other triplets from the same settings
_DIRECTED = {"mdsi", "vif"}  # panels with these have the next recipe: they take the reference last


@dataclass(frozen=True)
class TripletSettings:
    """Everything that a triplet depends on, except its number.

    Attributes:
        photos: the files.
        size: height and width of a patch in pixels.
        seed: of all random draws.
        labels: 'order' for one distortion at two strengths, 'panel' for two distortions.
        distortions: names from `DISTORTIONS`.
        panel: the metrics that vote; none with 'order', and none if somebody else judges the triplets.
        agree: how many metrics of the panel must agree.
    """

    photos: tuple[Path, ...]
    size: int
    seed: int
    labels: str
    distortions: tuple[str, ...]
    panel: tuple[str, ...] = ()
    agree: int = 0

    def describe(self, folder: Path) -> dict[str, Any]:
        """Return all settings for JSON; `folder` is the one that holds the photos."""
        listing = "\n".join(
            f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in self.photos
        )
        digest = hashlib.sha256(listing.encode()).hexdigest()[:16]
        description: dict[str, Any] = {
            "recipe": _RECIPE + bool(_DIRECTED & set(self.panel)),
            "photos": f"{len(self.photos)} files, sha256:{digest}",
            "size": self.size,
            "seed": self.seed,
            "labels": self.labels,
            "distortions": list(self.distortions),
        }
        if self.panel:
            description |= {"panel": list(self.panel), "agree": self.agree}
        return description


def list_photos(folder: Path) -> tuple[Path, ...]:
    """List all files under a folder by name, without hidden ones."""
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{folder}: {'not a folder' if folder.exists() else 'there is no such folder'}"
        )
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(name.startswith(".") for name in path.relative_to(folder).parts)
    ]
    if not files:
        raise DatasetError(f"{folder}: there are no photos")
    return tuple(files)


def check_least(**values: tuple[int, int]) -> None:
    """Check named values against their lower limits: `check_least(size=(size, 8))`."""
    for name, (value, least) in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_distortions(names: Sequence[str] | None, least: int) -> tuple[str, ...]:
    """Return the names in the order of the table, so that the order of the argument does not matter."""
    if names is None:
        return tuple(DISTORTIONS)
    for name in names:
        if name not in DISTORTIONS:
            raise ValueError(f"there is no distortion named {name!r}; the names are {', '.join(DISTORTIONS)}")
    chosen = tuple(name for name in DISTORTIONS if name in names)
    if len(chosen) < least:
        raise ValueError(f"these labels need at least {least} distortions, got {len(chosen)}")
    return chosen


def check_panel(labels: str, panel: Sequence[str] | None, agree: int | None) -> tuple[tuple[str, ...], int]:
    """Return the panel and how many of it must agree: `(), 0` if the labels need no panel."""
    if labels == "order":
        if panel is not None or agree is not None:
            raise ValueError("panel and agree go with labels='panel' only")
        return (), 0
    if labels != "panel":
        raise ValueError(f"labels={labels!r} is unknown; choose 'order' or 'panel'")
    names = tuple(PANEL if panel is None else panel)
    for name in names:
        if name not in METRICS:
            raise ValueError(f"there is no metric named {name!r}; the names are {', '.join(METRICS)}")
    if not names or len(set(names)) < len(names):
        raise ValueError("a panel needs at least one metric, and each once")
    majority = len(names) // 2 + 1
    if agree is None:
        agree = max(len(names) - 1, majority)
    if not majority <= agree <= len(names):
        raise ValueError(f"agree must be in [{majority}, {len(names)}] for {len(names)} metrics, got {agree}")
    return names, agree
