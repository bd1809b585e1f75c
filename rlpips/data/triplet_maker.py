"""The making of a triplet: photo, patch, two distorted versions, judgement.

A triplet depends on its number and the settings alone, so any process can make any triplet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from rlpips.data.distortions import DISTORTIONS
from rlpips.data.panel import METRICS, PanelMetric, Pixels, Triplet, count_votes
from rlpips.data.triplet_settings import TripletSettings
from rlpips.errors import DatasetError, ImageError
from rlpips.images import read_image, to_png


@dataclass
class EncodedTriplet:
    """A triplet as the content of files.

    Attributes:
        number: what the triplet was made from.
        images: `ref`, `p0` and `p1` as PNG files.
        judge: the judgement, in [0, 1]; NaN if it is not known.
        votes: the panel's votes for `p1`.
    """

    number: int
    images: tuple[bytes, bytes, bytes]
    judge: float
    votes: int = 0


@dataclass
class SkippedPhotos:
    """Photos that cannot be used: too small, or unreadable for the given reason."""

    small: set[Path] = field(default_factory=set)
    unreadable: dict[Path, str] = field(default_factory=dict)

    def __contains__(self, photo: Path) -> bool:
        return photo in self.small or photo in self.unreadable

    def add(self, other: "SkippedPhotos") -> None:
        """Add those of another."""
        self.small |= other.small
        self.unreadable |= other.unreadable


@dataclass
class Chunk:
    """The triplets made from several numbers, and the photos that were skipped meanwhile."""

    triplets: list[EncodedTriplet] = field(default_factory=list)
    skipped: SkippedPhotos = field(default_factory=SkippedPhotos)


class TripletMaker:
    """Makes triplets from their numbers."""

    def __init__(self, settings: TripletSettings) -> None:
        self._settings = settings
        self._panel: list[PanelMetric] | None = None  # built on first use
        self._skipped = SkippedPhotos()

    def render(self, numbers: Sequence[int]) -> Chunk:
        """Make the triplets of these numbers; those for a panel stay without a judgement."""
        chunk = self._new_chunk()
        for number in numbers:
            images, judge = self.triplet(number)
            chunk.triplets.append(EncodedTriplet(number, _encode(images), judge))
        return chunk

    def judge(self, numbers: Sequence[int]) -> Chunk:
        """Make the triplets of these numbers, and keep those on which enough of the panel agree."""
        chunk = self._new_chunk()
        if self._panel is None:
            self._panel = [METRICS[name]() for name in self._settings.panel]
        triplets = [self.triplet(number)[0] for number in numbers]
        voters = len(self._panel)
        for number, images, for_p1 in zip(numbers, triplets, count_votes(self._panel, triplets), strict=True):
            if for_p1 is not None and max(for_p1, voters - for_p1) >= self._settings.agree:
                chunk.triplets.append(EncodedTriplet(number, _encode(images), for_p1 / voters, for_p1))
        return chunk

    def _new_chunk(self) -> Chunk:
        chunk = Chunk()
        self._skipped = chunk.skipped
        return chunk

    def triplet(self, number: int) -> tuple[Triplet, float]:
        """Make one triplet, and its judgement: NaN if it is not known.

        Raises:
            DatasetError: no photo can be used.
            OSError: the system cannot read a photo. It is not skipped, as the triplet would then be another.
        """
        settings = self._settings
        rng = np.random.default_rng([settings.seed, number])
        order = rng.permutation(len(settings.photos))
        for attempt in range(max(100, len(order))):
            photo = self._load(settings.photos[order[attempt % len(order)]])
            if photo is None:
                continue
            ref = _random_patch(photo, settings.size, rng)
            p0, p1, judge = self._distort(ref, rng)
            # Two versions may be equal: nothing makes a black patch darker, or a grey one lose its colour.
            if _rms(p0, p1) >= 1:
                return (ref, p0, p1), judge
        skipped = self._skipped
        reasons = [f"{len(skipped.small)} are smaller than {settings.size} pixels"] if skipped.small else []
        if skipped.unreadable:
            reasons.append(f"{len(skipped.unreadable)} cannot be read")
        raise DatasetError(
            f"none of {len(settings.photos)} photos can be used: "
            + (" and ".join(reasons) or "these distortions change nothing in them")
        )

    def _load(self, path: Path) -> Pixels | None:
        """Read a photo; return None, and remember why, if it cannot be used."""
        if path in self._skipped:
            return None
        try:
            photo = read_image(path)
        except ImageError as error:
            self._skipped.unreadable[path] = str(error)
            return None
        if min(photo.shape[:2]) < self._settings.size:
            self._skipped.small.add(path)
            return None
        return photo

    def _distort(self, ref: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels, float]:
        """Return p0, p1 and the judgement."""
        names = self._settings.distortions
        seeds = rng.integers(2**63, size=2)
        if self._settings.labels == "panel":
            one, other = (DISTORTIONS[names[k]] for k in rng.permutation(len(names))[:2])
            strengths = rng.uniform(0.1, 1, 2)
            p0 = one(ref, strengths[0], np.random.default_rng(seeds[0]))
            p1 = other(ref, strengths[1], np.random.default_rng(seeds[1]))
            return p0, p1, float("nan")
        distort = DISTORTIONS[names[rng.integers(len(names))]]
        gap = rng.uniform(0.1, 0.9)
        weak = rng.uniform(0, 1 - gap)
        weaker, stronger = (
            distort(ref, strength, np.random.default_rng(seeds[0])) for strength in (weak, weak + gap)
        )
        return (weaker, stronger, 0.0) if rng.random() < 0.5 else (stronger, weaker, 1.0)


def _random_patch(photo: Pixels, size: int, rng: np.random.Generator) -> Pixels:
    """Reduce a photo by a random factor and cut a random patch `(size, size, 3)`."""
    height, width = photo.shape[:2]
    # Only what becomes the patch is reduced: it is cut first.
    scale = rng.uniform(size / min(height, width), 1)
    side = min(round(size / scale), height, width)
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    image = Image.fromarray(photo[top : top + side, left : left + side])
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC))


def _rms(a: Pixels, b: Pixels) -> float:
    return float(np.sqrt(np.mean((a.astype(float) - b) ** 2)))


def _encode(images: Triplet) -> tuple[bytes, bytes, bytes]:
    ref, p0, p1 = images
    return to_png(ref), to_png(p0), to_png(p1)
