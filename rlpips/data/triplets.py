"""2AFC triplets from a folder of photos.

A triplet is a patch of a photo (`ref`), two distorted versions of it (`p0`, `p1`) and a judgement (`judge`):
0 if `p0` is more similar to `ref`, 1 if `p1` is. No person judges. There are two kinds of labels:

- order: both versions have the same distortion with the same random draws, one more strongly. The weaker one
  is more similar by construction. Such labels do not compare different distortions.
- panel: the versions have different distortions, and several metrics vote. The judgement is the share of
  votes for `p1`. Triplets on which too few metrics agree are dropped. Such labels only approximate human
  judgements, and metrics of the panel agree with them by construction.
"""

import contextlib
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from rlpips.data.panel import try_panel
from rlpips.data.triplet_maker import EncodedTriplet, TripletMaker
from rlpips.data.triplet_record import SubsetRecord
from rlpips.data.triplet_settings import (
    TripletSettings,
    check_distortions,
    check_least,
    check_panel,
    list_photos,
)
from rlpips.data.triplet_workers import TripletWorkers
from rlpips.errors import DatasetError
from rlpips.images import to_tensor
from rlpips.system.files import write_atomically
from rlpips.system.progress import progress

_SUFFIXES = {"ref": ".png", "p0": ".png", "p1": ".png", "judge": ".npy"}
_CHUNK = 16  # triplets in one piece of work: fixed, as a metric's last digits may depend on the batch size
_BARREN = 4096  # the panel is given up if it keeps none of so many candidates in a row


@dataclass(frozen=True)
class TripletsMade:
    """What `make_triplets` did.

    Attributes:
        folder: the subset's folder.
        new: how many triplets this call made; the others were already there.
        candidates: how many triplets the panel has judged in all; 0 without a panel.
        small: photos that were skipped because they are smaller than a patch.
        unreadable: photos that were skipped because they are damaged or not images, with the reason.
    """

    folder: Path
    new: int
    candidates: int
    small: tuple[Path, ...]
    unreadable: dict[Path, str]


def make_triplets(
    photos: str | PathLike[str],
    out: str | PathLike[str],
    *,
    count: int = 1000,
    size: int = 64,
    seed: int = 0,
    split: str = "val",
    subset: str = "triplets",
    labels: str = "order",
    panel: Sequence[str] | None = None,
    agree: int | None = None,
    distortions: Sequence[str] | None = None,
    workers: int = 0,
) -> TripletsMade:
    """Make a 2AFC data set from a folder of photos, which `TwoAFC(out, "SPLIT/SUBSET")` reads.

    The same photos, settings and versions of the libraries give the same files. The number of workers and
    interruptions change nothing: a new call keeps the triplets that are there. A greater `count` adds to a
    data set. The settings are kept in `SUBSET.json` beside the subset. A script that uses workers must call
    this under `if __name__ == "__main__":`, because each worker imports the script.

    Args:
        photos: a folder, searched with all folders in it; hidden files are ignored.
        out: the data set's root. Files go to `OUT/2afc/SPLIT/SUBSET`.
        count: how many triplets.
        size: height and width of a patch in pixels. The photo is reduced by a random factor, at most until
            its shorter side has this size, and the patch is cut at random.
        seed: not negative; another seed gives other triplets.
        split: 'train' or 'val'.
        subset: a name.
        labels: 'order': one distortion at two strengths, and the weaker one is right. 'panel': two
            distortions, and metrics vote.
        panel: the metrics that vote: 'lpips-alex', 'lpips-vgg', 'lpips-squeeze', or names from
            `rlpips.classical.CLASSICAL`. By default 'lpips-alex', 'lpips-vgg', 'ssim', 'fsim', 'vsi', 'gmsd'
            and 'haarpsi'.
        agree: how many metrics must agree, more than half; by default all but one, if that is more than half.
        distortions: names from `rlpips.data.DISTORTIONS` to choose from; by default all.
        workers: processes that make triplets; 0 makes them in this process.

    Returns:
        What was made, and which photos could not be used.

    Raises:
        DatasetError: no photo can be used, the panel agrees on nothing, or the subset has other settings.
        MissingExtraError: a metric needs `pip install 'rlpips[classical]'`.
        OSError: there is no such folder, the system cannot read a photo, or files cannot be written.
        ValueError: an argument is unknown or does not fit the others.
        WeightsUnavailableError: a metric's weights are not on this machine and could not be downloaded.
    """
    _check_place(split, subset)
    check_least(count=(count, 1), size=(size, 8), seed=(seed, 0), workers=(workers, 0))
    chosen_panel, chosen_agree = check_panel(labels, panel, agree)
    chosen = check_distortions(distortions, least=2 if chosen_panel else 1)
    if Path(out).resolve().is_relative_to(Path(photos).resolve()):
        raise ValueError(
            f"{out} lies in {photos}; choose another place, as another call would read triplets as photos"
        )
    files = list_photos(Path(photos))
    settings = TripletSettings(files, size, seed, labels, chosen, chosen_panel, chosen_agree)
    folder = Path(out) / "2afc" / split / subset
    record = SubsetRecord.open(folder, settings.describe(Path(photos)))
    if settings.panel and len(record.kept) < count:
        try_panel(settings.panel, settings.size)
    folder.parent.mkdir(parents=True, exist_ok=True)
    record.save()
    for kind in _SUFFIXES:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    return _fill(folder, settings, record, count, workers)


class PhotoTriplets(Dataset[dict[str, Any]]):
    """Triplets of two distortions, made from a folder of photos when they are asked for.

    An item is a dict of `ref`, `p0` and `p1`, float32 `(3, size, size)` in [-1, 1]; `judge`, float32
    `(1, 1, 1)`, which is NaN because nobody has judged; and `index`, the item's position, an int. An item
    follows from the photos, the arguments and its position. `rlpips train --photos` trains on such items.

    Args:
        photos: a folder, searched with all folders in it; hidden files are ignored.
        count: how many triplets.
        size: height and width in pixels.
        seed: not negative; another seed gives other triplets.
        distortions: names from `rlpips.data.DISTORTIONS` to choose from; by default all.
        aside: True uses only every tenth photo by name, False only the others; by default all.

    Attributes:
        description: everything that the triplets depend on, for JSON.

    Raises:
        DatasetError: there are no photos; for an item, no photo can be used.
        OSError: there is no such folder; for an item, the system cannot read a photo.
        ValueError: an argument is unknown or out of range.
    """

    def __init__(
        self,
        photos: str | PathLike[str],
        count: int,
        *,
        size: int = 64,
        seed: int = 0,
        distortions: Sequence[str] | None = None,
        aside: bool | None = None,
    ) -> None:
        check_least(count=(count, 1), size=(size, 8), seed=(seed, 0))
        files = list_photos(Path(photos))
        if aside is not None:
            files = tuple(file for k, file in enumerate(files) if (k % 10 == 0) == aside)
        if not files:
            raise DatasetError(f"{photos}: there is only one photo, and validation needs another")
        settings = TripletSettings(files, size, seed, "panel", check_distortions(distortions, least=2))
        description = settings.describe(Path(photos))
        self.description = {key: value for key, value in description.items() if key != "labels"}
        self._count = count
        self._maker = TripletMaker(settings)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(self._count)[index]
        images, _ = self._maker.triplet(index)
        ref, p0, p1 = to_tensor(np.stack(images))[0]
        return {"ref": ref, "p0": p0, "p1": p1, "judge": torch.full((1, 1, 1), torch.nan), "index": index}


def _check_place(split: str, subset: str) -> None:
    if split not in ("train", "val"):
        raise ValueError(f"split={split!r} is unknown; choose 'train' or 'val'")
    if not subset or subset.startswith(".") or set(subset) & set("/\\:"):
        raise ValueError(f"subset={subset!r} cannot be the name of a folder")


def _fill(
    folder: Path, settings: TripletSettings, record: SubsetRecord, count: int, workers: int
) -> TripletsMade:
    """Make the triplets that a subset of `count` still lacks."""
    present = set.intersection(
        *(
            {path.stem for path in (folder / kind).iterdir() if path.suffix == suffix}
            for kind, suffix in _SUFFIXES.items()
        )
    )
    missing = [index for index in range(count) if _stem(index) not in present]
    wanted = set(missing)
    with (
        contextlib.closing(TripletWorkers(settings, workers)) as crew,
        progress(folder.name, total=count, initial=count - len(missing), unit="triplet") as bar,
    ):
        try:
            for index, triplet in itertools.chain(
                _render(crew, settings, record, missing), _judge(crew, settings, record, count)
            ):
                if index in wanted:
                    _write(folder, index, triplet)
                    bar.update()
        finally:
            if settings.panel:
                record.save()
    small = tuple(sorted(crew.skipped.small))
    unreadable = dict(sorted(crew.skipped.unreadable.items()))
    return TripletsMade(folder, len(missing), record.judged, small, unreadable)


def _render(
    crew: TripletWorkers, settings: TripletSettings, record: SubsetRecord, missing: Sequence[int]
) -> Iterator[tuple[int, EncodedTriplet]]:
    """Yield the missing triplets for which no panel has to judge, each with its index in the subset."""
    if not settings.panel:
        index_of = {index: index for index in missing}
    else:
        index_of = {record.kept[index][0]: index for index in missing if index < len(record.kept)}
    votes_of = dict(record.kept)
    for triplets in crew.map(TripletMaker.render, _chunks(index_of)):
        for triplet in triplets:
            if settings.panel:
                triplet.judge = votes_of[triplet.number] / len(settings.panel)
            yield index_of[triplet.number], triplet


def _judge(
    crew: TripletWorkers, settings: TripletSettings, record: SubsetRecord, count: int
) -> Iterator[tuple[int, EncodedTriplet]]:
    """Let the panel judge candidates until it has kept `count`. Yield what it keeps, each with its index."""
    if not settings.panel or len(record.kept) >= count:
        return
    start = record.judged // _CHUNK * _CHUNK
    numbers = (range(first, first + _CHUNK) for first in itertools.count(start, _CHUNK))
    for first, triplets in zip(itertools.count(start, _CHUNK), crew.map(TripletMaker.judge, numbers)):
        for triplet in triplets:
            if triplet.number < record.judged:
                continue
            yield len(record.kept), triplet
            record.kept.append((triplet.number, triplet.votes))
            record.judged = triplet.number + 1
            if len(record.kept) == count:
                return
        record.judged = max(record.judged, first + _CHUNK)
        record.save_sometimes()
        last = record.kept[-1][0] if record.kept else 0
        if record.judged - last > _BARREN:
            raise DatasetError(
                f"the panel agreed on none of the last {_BARREN} candidates; "
                "ask for fewer to agree, or allow more distortions"
            )


def _stem(index: int) -> str:
    return f"{index:06d}"


def _chunks(numbers: Iterable[int]) -> Iterator[list[int]]:
    numbers = iter(numbers)
    while chunk := list(itertools.islice(numbers, _CHUNK)):
        yield chunk


def _write(folder: Path, index: int, triplet: EncodedTriplet) -> None:
    """Write a triplet's files, the judgement last."""
    judge = io.BytesIO()
    np.save(judge, np.array([triplet.judge], dtype=np.float32))
    contents = (*triplet.images, judge.getvalue())
    for (kind, suffix), content in zip(_SUFFIXES.items(), contents, strict=True):
        write_atomically(folder / kind / f"{_stem(index)}{suffix}", content)
