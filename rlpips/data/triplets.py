"""Triplets in the layout of BAPPS from any folder of photos, each made from its number and a seed alone.

A triplet is a patch of a photo (`ref`), two distorted versions of it (`p0`, `p1`) and a judgement (`judge`),
0 where `p0` is more alike to `ref` and 1 where `p1` is. No person is asked. There are two kinds of judgement:

- order: both versions have the same distortion and the same random draws, one of them more strongly. The
  judgement is known by construction, and says nothing on how different distortions compare.
- panel: the versions have different distortions, each of several metrics votes, the judgement is the share of
  votes for `p1`, and a triplet is kept only where enough of them agree. That is what metrics agree on, not
  what people say, and a metric of the panel agrees with it by construction.
"""

import collections
import contextlib
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import Dataset

from rlpips.data.distortions import DISTORTIONS
from rlpips.data.panel import METRICS, PANEL, Metric, check_panel, votes
from rlpips.errors import DatasetError, ImageError, printable
from rlpips.images import read_image, to_png, to_tensor
from rlpips.system.files import write_atomically
from rlpips.system.processes import end_with_parent
from rlpips.system.progress import progress

_PARTS = ("ref", "p0", "p1", "judge")
_RECIPE = 2  # to be raised by a change that gives other triplets for the same settings
_CHUNK = 16  # numbers that go to a worker at once: fixed, as a batch's size may change a metric's last digits
_BARREN = 4096  # candidates in a row of which the panel keeps none before we give up
_SAVE_EVERY = 5.0  # seconds between two records of a panel's progress

Pixels = npt.NDArray[np.uint8]
T = TypeVar("T")


@dataclass(frozen=True)
class TripletsMade:
    """What `make_triplets` did.

    Attributes:
        folder: the subset's folder.
        new: how many triplets this call made; the others were there.
        candidates: how many triplets the panel has judged to keep them; 0 without a panel.
        small: photos met that are smaller than a patch and were passed over.
        unreadable: photos met that are damaged or no images and were passed over, with the reason.
    """

    folder: Path
    new: int
    candidates: int
    small: tuple[Path, ...]
    unreadable: dict[Path, str]


@dataclass(frozen=True)
class _Job:
    """Everything that a triplet depends on but for its number."""

    photos: tuple[Path, ...]
    size: int
    seed: int
    labels: str
    distortions: tuple[str, ...]
    panel: tuple[str, ...]
    agree: int


@dataclass
class _Made:
    """What a worker returns for a chunk: triplets with their numbers, and the photos that it passed over."""

    triplets: list["_Encoded"] = field(default_factory=list)
    small: set[Path] = field(default_factory=set)
    unreadable: dict[Path, str] = field(default_factory=dict)


@dataclass
class _Encoded:
    """A triplet as the content of files; `votes` are those for p1 where a panel judged it."""

    number: int
    images: tuple[bytes, bytes, bytes]
    judge: float
    votes: int = 0


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
    """Make a 2AFC data set from a folder of photos, for `TwoAFC(out, "SPLIT/SUBSET")` to read.

    The same photos, settings and versions of the libraries give the same files, however many workers there
    are and however often the work was interrupted: triplets that are there are kept, and `SUBSET.json` beside
    the subset remembers the settings. A greater `count` continues a data set. With workers, a script must
    call this under `if __name__ == "__main__":`, as they are started afresh ('spawn').

    Args:
        photos: a folder, searched with the folders in it; hidden files are ignored.
        out: the data set's root; files go to `OUT/2afc/SPLIT/SUBSET`.
        count: how many triplets.
        size: height and width of a patch in pixels. It is cut at random after scaling the photo down at
            random, at most until its shorter side has this size.
        seed: not negative; other seeds give other triplets.
        split: 'train' or 'val'.
        subset: a name.
        labels: 'order' or 'panel', as the module explains.
        panel: the metrics that vote: 'lpips-alex', 'lpips-vgg', 'lpips-squeeze', 'ssim', 'fsim', 'vsi',
            'gmsd', 'mdsi', 'haarpsi', 'vif', 'psnr'. By default `PANEL`.
        agree: how many must agree, more than half; by default all but one, where that is more than half.
        distortions: names of `rlpips.distortions.DISTORTIONS` to choose from; by default all.
        workers: processes that make triplets; 0 makes them in this one.

    Returns:
        What was made, and which photos could not be used.

    Raises:
        DatasetError: no photo can be used, the panel agrees on nothing, or the subset was made otherwise.
        MissingExtraError: a metric needs `pip install 'rlpips[classical]'`.
        OSError: there is no such folder, a photo cannot be read now, or files cannot be written.
        ValueError: an argument is unknown or does not fit the others.
        WeightsUnavailableError: a metric's weights are not on this machine and could not be fetched.
    """
    _check_place(split, subset)
    _check_least(count=(count, 1), size=(size, 8), seed=(seed, 0), workers=(workers, 0))
    chosen_panel, chosen_agree = _check_panel(labels, panel, agree)
    chosen = _check_distortions(distortions, least=2 if chosen_panel else 1)
    if Path(out).resolve().is_relative_to(Path(photos).resolve()):
        raise ValueError(f"{out} lies in {photos}, and what is made would be taken for photos")
    files = _photos(Path(photos))
    job = _Job(files, size, seed, labels, chosen, chosen_panel, chosen_agree)
    folder = Path(out) / "2afc" / split / subset
    record = _Record.open(folder, _settings(job, Path(photos)))
    if job.panel and len(record.kept) < count:
        check_panel(job.panel, job.size)
    folder.parent.mkdir(parents=True, exist_ok=True)
    record.save()
    for part in _PARTS:
        (folder / part).mkdir(parents=True, exist_ok=True)
    return _make(job, folder, record, count, workers)


class PhotoTriplets(Dataset[dict[str, Any]]):
    """Triplets of two different distortions, made as they are asked for from a folder of photos.

    An item is as of `rlpips.TwoAFC`, but its `judge` is NaN: nobody has judged it. The photos, the arguments
    and its number decide an item. Training reads them with `rlpips train --photos`.

    Args:
        photos: a folder, searched with the folders in it; hidden files are ignored.
        count: how many triplets.
        size: height and width in pixels.
        seed: not negative; other seeds give other triplets.
        distortions: names of `rlpips.distortions.DISTORTIONS` to choose from; by default all.
        aside: True takes every tenth photo by name alone, False takes the others alone; by default all.

    Attributes:
        description: everything that the triplets depend on, for JSON.

    Raises:
        DatasetError: there are no photos; for an item, no photo can be used.
        OSError: there is no such folder; for an item, a photo cannot be read now. No other photo takes its
            place, as the triplets would then be others.
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
        _check_least(count=(count, 1), size=(size, 8), seed=(seed, 0))
        files = _photos(Path(photos))
        if aside is not None:
            files = tuple(file for k, file in enumerate(files) if (k % 10 == 0) == aside)
        if not files:
            raise DatasetError(f"{photos}: of one photo none can be kept aside to validate on")
        job = _Job(files, size, seed, "panel", _check_distortions(distortions, least=2), ("teachers",), 1)
        settings = _settings(job, Path(photos))
        self.description = {k: v for k, v in settings.items() if k not in ("labels", "panel", "agree")}
        self._count = count
        self._maker = _Maker(job)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(self._count)[index]
        images, _ = self._maker.triplet(index)
        ref, p0, p1 = to_tensor(np.stack(images))[0]
        return {"ref": ref, "p0": p0, "p1": p1, "judge": torch.full((1, 1, 1), torch.nan), "index": index}


def _check_least(**values: tuple[int, int]) -> None:
    for name, (value, least) in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _check_place(split: str, subset: str) -> None:
    if split not in ("train", "val"):
        raise ValueError(f"split={split!r} is unknown; choose 'train' or 'val'")
    if not subset or subset.startswith(".") or set(subset) & set("/\\:"):
        raise ValueError(f"subset={subset!r} is not a folder's name")


def _check_panel(labels: str, panel: Sequence[str] | None, agree: int | None) -> tuple[tuple[str, ...], int]:
    """Return the panel and how many must agree; an empty one for labels that need none."""
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


def _check_distortions(names: Sequence[str] | None, least: int) -> tuple[str, ...]:
    """Return names in the order of the table, so that the order in which they were given changes nothing."""
    if names is None:
        return tuple(DISTORTIONS)
    for name in names:
        if name not in DISTORTIONS:
            raise ValueError(f"there is no distortion named {name!r}; the names are {', '.join(DISTORTIONS)}")
    chosen = tuple(name for name in DISTORTIONS if name in names)
    if len(chosen) < least:
        raise ValueError(f"these labels need at least {least} distortions, got {len(chosen)}")
    return chosen


def _photos(folder: Path) -> tuple[Path, ...]:
    """List the files in a folder and those in it, by name, but for hidden ones."""
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{folder}: {'not a folder' if folder.exists() else 'there is no such folder'}"
        )
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise DatasetError(f"{folder}: there are no photos")
    return tuple(files)


def _settings(job: _Job, folder: Path) -> dict[str, Any]:
    """Return, for JSON, everything that a subset's triplets depend on."""
    listing = "\n".join(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in job.photos)
    settings: dict[str, Any] = {
        "recipe": _RECIPE,
        "photos": f"{len(job.photos)} files, sha256:{hashlib.sha256(listing.encode()).hexdigest()[:16]}",
        "size": job.size,
        "seed": job.seed,
        "labels": job.labels,
        "distortions": list(job.distortions),
    }
    return settings | ({"panel": list(job.panel), "agree": job.agree} if job.panel else {})


@dataclass
class _Record:
    """The file beside a subset: its settings, and the candidates that a panel kept, each with its votes."""

    file: Path
    settings: dict[str, Any]
    kept: list[tuple[int, int]] = field(default_factory=list)
    judged: int = 0  # candidates below this number have been judged
    _saved: float = 0.0

    @classmethod
    def open(cls, folder: Path, settings: dict[str, Any]) -> "_Record":
        """Read the record of a subset, or begin one, and check that the settings are the same."""
        file = folder.with_name(f"{folder.name}.json")
        if not file.exists():
            if folder.exists() and any(folder.iterdir()):
                raise DatasetError(f"{folder} was not made here, as there is no {file.name} beside it")
            return cls(file, settings)
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            kept = [(int(candidate), int(votes)) for candidate, votes in document.get("kept", [])]
            old, judged = dict(document["settings"]), int(document.get("judged", 0))
            digest = document.get("digest")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DatasetError(f"{file} is damaged ({error}); delete it and {folder}") from error
        if "panel" in old and digest != _digest(judged, kept):
            raise DatasetError(f"{file} is damaged (its digest is another's); delete it and {folder}")
        changed = [
            f"{printable(key)} was {_brief(old.get(key))} and is now {_brief(settings.get(key))}"
            for key in (settings | old)
            if old.get(key) != settings.get(key)
        ]
        if changed:
            raise DatasetError(
                f"{folder} was made with other settings: {'; '.join(changed)}. "
                "Use the same settings, or another subset"
            )
        return cls(file, settings, kept, judged)

    def save(self, *, now: bool = True) -> None:
        """Write the record, or, if not `now`, unless that was done a moment ago."""
        if not now and time.monotonic() - self._saved < _SAVE_EVERY:
            return
        document: dict[str, Any] = {"settings": self.settings}
        if "panel" in self.settings:
            document |= {"judged": self.judged, "kept": self.kept}
            document["digest"] = _digest(self.judged, self.kept)
        write_atomically(self.file, (json.dumps(document) + "\n").encode())
        self._saved = time.monotonic()


def _digest(judged: int, kept: list[tuple[int, int]]) -> str:
    return f"sha256:{hashlib.sha256(json.dumps([judged, kept]).encode()).hexdigest()}"


def _brief(value: Any) -> str:
    """Write a setting shortly enough for an error message."""
    text = "not set" if value is None else ", ".join(value) if isinstance(value, list) else str(value)
    return printable(text, 60)


def _make(job: _Job, folder: Path, record: _Record, count: int, workers: int) -> TripletsMade:
    """Make what a subset lacks."""
    present = set.intersection(
        *({path.stem for path in (folder / part).iterdir() if path.suffix == suffix}
          for part, suffix in zip(_PARTS, (".png", ".png", ".png", ".npy"), strict=True))
    )  # fmt: skip
    missing = [i for i in range(count) if _stem(i) not in present]
    met = _Made()

    def note(made: _Made) -> list[_Encoded]:
        met.small |= made.small
        met.unreadable |= made.unreadable
        return made.triplets

    with (
        contextlib.closing(_Crew(job, workers)) as crew,
        progress(folder.name, total=count, initial=count - len(missing), unit="triplet") as bar,
    ):
        # What was kept before needs no panel any more; all that is missing is known without one.
        known = [i for i in missing if not job.panel or i < len(record.kept)]
        votes_of = dict(record.kept)
        index_of = {record.kept[i][0] if job.panel else i: i for i in known}
        for made in crew.map(_Maker.render, _chunks(index_of)):
            for triplet in note(made):
                if job.panel:
                    triplet.judge = votes_of[triplet.number] / len(job.panel)
                _write(folder, index_of[triplet.number], triplet)
                bar.update()
        if job.panel and len(record.kept) < count:
            wanted = set(missing)
            try:
                first = record.judged // _CHUNK * _CHUNK
                chunks = (range(k, k + _CHUNK) for k in itertools.count(first, _CHUNK))
                for chunk, made in zip(itertools.count(first, _CHUNK), crew.map(_Maker.judge, chunks)):
                    for triplet in note(made):
                        if triplet.number < record.judged or len(record.kept) == count:
                            continue
                        index = len(record.kept)
                        if index in wanted:
                            _write(folder, index, triplet)
                            bar.update()
                        record.kept.append((triplet.number, triplet.votes))
                        record.judged = triplet.number + 1
                    if len(record.kept) == count:
                        break
                    record.judged = max(record.judged, chunk + _CHUNK)
                    record.save(now=False)
                    last = record.kept[-1][0] if record.kept else 0
                    if record.judged - last > _BARREN:
                        raise DatasetError(
                            f"the panel agreed on none of the last {_BARREN} candidates; "
                            "ask for fewer to agree, or allow more distortions"
                        )
            finally:
                record.save()
    small = tuple(sorted(met.small))
    unreadable = dict(sorted(met.unreadable.items()))
    return TripletsMade(folder, len(missing), record.judged, small, unreadable)


def _stem(index: int) -> str:
    return f"{index:06d}"


def _chunks(numbers: Iterable[int]) -> Iterator[list[int]]:
    numbers = iter(numbers)
    while chunk := list(itertools.islice(numbers, _CHUNK)):
        yield chunk


def _write(folder: Path, index: int, triplet: _Encoded) -> None:
    """Write a triplet's files, the judgement last."""
    judge = io.BytesIO()
    np.save(judge, np.array([triplet.judge], dtype=np.float32))
    contents = (*triplet.images, judge.getvalue())
    for part, suffix, content in zip(_PARTS, (".png", ".png", ".png", ".npy"), contents, strict=True):
        write_atomically(folder / part / f"{_stem(index)}{suffix}", content)


class _Crew:
    """Runs a maker's methods on chunks, in this process or in several, and yields the results in order."""

    def __init__(self, job: _Job, workers: int) -> None:
        self._workers = workers
        if workers:
            if os.name == "posix":
                from multiprocessing import resource_tracker

                resource_tracker.ensure_running()  # later it would undo `_interrupts_held`
            self._pool = ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(job,)
            )
        else:
            self._maker = _Maker(job)

    def map(
        self, method: Callable[["_Maker", Sequence[int]], T], chunks: Iterable[Sequence[int]]
    ) -> Iterator[T]:
        """Yield `method(maker, chunk)` for each chunk; chunks may be endless."""
        if not self._workers:
            for chunk in chunks:
                yield method(self._maker, chunk)
            return
        chunks = iter(chunks)
        waiting: collections.deque[Future[T]] = collections.deque()

        def submit(most: int) -> None:
            with _interrupts_held():
                for chunk in itertools.islice(chunks, most):
                    waiting.append(self._pool.submit(_in_worker, method, chunk))

        submit(2 * self._workers)
        while waiting:
            result = waiting.popleft().result()
            submit(1)
            yield result

    def close(self) -> None:
        """Stop the workers, leaving aside what has not begun."""
        if self._workers:
            self._pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let processes that start meanwhile ignore Ctrl-C, which is for the one that gives the work."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: "_Maker | None" = None


def _start_worker(job: _Job) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    _worker = _Maker(job)


def _in_worker(method: Callable[["_Maker", Sequence[int]], T], chunk: Sequence[int]) -> T:
    assert _worker is not None
    return method(_worker, chunk)


class _Maker:
    """Makes triplets from their numbers."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._panel: list[Metric] | None = None  # built with the first use
        self._made = _Made()

    def render(self, numbers: Sequence[int]) -> _Made:
        """Make triplets; those for a panel get no judgement."""
        self._made = made = _Made()
        for number in numbers:
            images, judge = self.triplet(number)
            made.triplets.append(_Encoded(number, _encoded(images), judge))
        return made

    def judge(self, numbers: Sequence[int]) -> _Made:
        """Make triplets and keep those on which enough of the panel agree."""
        self._made = made = _Made()
        if self._panel is None:
            self._panel = [METRICS[name]() for name in self._job.panel]
        triplets = [self.triplet(number)[0] for number in numbers]
        found = votes(self._panel, triplets)
        voters = len(self._panel)
        for number, images, for_p1 in zip(numbers, triplets, found, strict=True):
            if for_p1 is not None and max(for_p1, voters - for_p1) >= self._job.agree:
                made.triplets.append(_Encoded(number, _encoded(images), for_p1 / voters, for_p1))
        return made

    def triplet(self, number: int) -> tuple[tuple[Pixels, Pixels, Pixels], float]:
        """Make one triplet, `(size, size, 3)` each, and its judgement where that is known (else NaN)."""
        job = self._job
        rng = np.random.default_rng([job.seed, number])
        order = rng.permutation(len(job.photos))
        for attempt in range(max(100, len(order))):
            photo = self._load(job.photos[order[attempt % len(order)]])
            if photo is None:
                continue
            ref = _patch(photo, job.size, rng)
            versions, judge = self._versions(ref, rng)
            # A black patch cannot be darkened, nor a grey one lose its colour: such pairs show nothing.
            if _rms(versions[0], versions[1]) >= 1:
                return (ref, *versions), judge
        reasons = [f"{len(self._made.small)} are smaller than {job.size} pixels"] if self._made.small else []
        if self._made.unreadable:
            reasons.append(f"{len(self._made.unreadable)} cannot be read")
        raise DatasetError(
            f"none of {len(job.photos)} photos can be used: "
            + (" and ".join(reasons) or "these distortions change nothing in them")
        )

    def _load(self, path: Path) -> Pixels | None:
        """Read a photo, or note why it cannot be used."""
        if path in self._made.small or path in self._made.unreadable:
            return None
        try:
            photo = read_image(path)
        except ImageError as error:  # an error of reading may pass, and other triplets would come of it
            self._made.unreadable[path] = str(error)
            return None
        if min(photo.shape[:2]) < self._job.size:
            self._made.small.add(path)
            return None
        return photo

    def _versions(self, ref: Pixels, rng: np.random.Generator) -> tuple[tuple[Pixels, Pixels], float]:
        names = self._job.distortions
        seeds = rng.integers(2**63, size=2)
        if self._job.panel:
            one, other = (DISTORTIONS[names[k]] for k in rng.permutation(len(names))[:2])
            strengths = rng.uniform(0.1, 1, 2)
            p0 = one(ref, strengths[0], np.random.default_rng(seeds[0]))
            p1 = other(ref, strengths[1], np.random.default_rng(seeds[1]))
            return (p0, p1), float("nan")
        distort = DISTORTIONS[names[rng.integers(len(names))]]
        gap = rng.uniform(0.1, 0.9)
        weak = rng.uniform(0, 1 - gap)
        weaker, stronger = (
            distort(ref, strength, np.random.default_rng(seeds[0])) for strength in (weak, weak + gap)
        )
        return ((weaker, stronger), 0.0) if rng.random() < 0.5 else ((stronger, weaker), 1.0)


def _patch(photo: Pixels, size: int, rng: np.random.Generator) -> Pixels:
    """Cut a random patch `(size, size, 3)` after a random reduction."""
    height, width = photo.shape[:2]
    # To reduce by `scale` and cut is to cut what becomes the patch, and reduce that.
    scale = rng.uniform(size / min(height, width), 1)
    side = min(round(size / scale), height, width)
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    image = Image.fromarray(photo[top : top + side, left : left + side])
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC))


def _rms(a: Pixels, b: Pixels) -> float:
    return float(np.sqrt(np.mean((a.astype(float) - b) ** 2)))


def _encoded(images: tuple[Pixels, Pixels, Pixels]) -> tuple[bytes, bytes, bytes]:
    ref, p0, p1 = images
    return to_png(ref), to_png(p0), to_png(p1)
