"""Human judgements of image similarity on disk: BAPPS (Zhang et al. 2018), and what has its layout.

A data set is a folder ROOT that holds

    ROOT/2afc/SPLIT/SUBSET/{ref,p0,p1}/STEM.png    a reference and two distortions of it
    ROOT/2afc/SPLIT/SUBSET/judge/STEM.npy          the share of people who found p1 more alike to ref
    ROOT/jnd/val/SUBSET/{p0,p1}/STEM.png           two images
    ROOT/jnd/val/SUBSET/same/STEM.npy              the share of people who took them for the same

where SPLIT is 'train' or 'val', the files of one example share their STEM, and a share is an array of one
value in [0, 1].
"""

import errno
import gzip
import os
import shutil
import tarfile
import tempfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from rlpips.errors import DatasetError, is_system_error, printable
from rlpips.hub import downloads
from rlpips.images import to_tensor
from rlpips.system import locks, shared_folders
from rlpips.system.progress import progress

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm")


@dataclass(frozen=True)
class _Subset:
    """One subset's files, found by listing its folders."""

    name: str
    folder: Path
    stems: tuple[str, ...]
    suffixes: dict[str, dict[str, str]]  # by folder, by stem, where it is not the usual one


class _Judged(Dataset[dict[str, Any]]):
    """What the two kinds of data sets share: which files there are, and how they are read."""

    _top: ClassVar[str]
    _splits: ClassVar[tuple[str, ...]]
    _images: ClassVar[tuple[str, ...]]
    _share: ClassVar[str]

    def __init__(self, root: str | PathLike[str], subsets: str | Sequence[str] | None = None) -> None:
        self.root = Path(root)
        top = self.root / self._top
        if not top.is_dir():
            raise DatasetError(
                f"{top}: there is no such folder; a data set holds {self._top}/{self._splits[-1]}/SUBSET"
            )
        if subsets is None:
            names = [f"val/{path.name}" for path in _visible(top / "val") if path.is_dir()]
            if not names:
                raise DatasetError(f"{top / 'val'}: there are no subsets")
        else:
            names = [subsets] if isinstance(subsets, str) else list(subsets)
            if not names:
                raise ValueError("subsets is empty; None stands for all that lie under val")
        self._subsets = [self._list(name) for name in dict.fromkeys(names)]
        self.subsets = tuple(subset.name for subset in self._subsets)
        self._ends = list(accumulate(len(subset.stems) for subset in self._subsets))

    def _list(self, name: str) -> _Subset:
        """List one subset and check that its folders hold the same examples."""
        split, _, own = name.partition("/")
        if split not in self._splits or not own or own.startswith(".") or "/" in own or "\\" in own:
            splits = " or ".join(repr(f"{split}/SUBSET") for split in self._splits)
            raise ValueError(f"{name!r} does not name a subset; write {splits}")
        folder = self.root / self._top / split / own
        if not folder.is_dir():
            beside = [path.name for path in _visible(folder.parent) if path.is_dir()]
            raise DatasetError(
                f"{folder}: there is no such folder" + (f"; there are {', '.join(beside)}" if beside else "")
            )
        files = {part: _stems(folder / part, _IMAGE_SUFFIXES) for part in self._images}
        files[self._share] = _stems(folder / self._share, (".npy",))
        first = self._images[0]
        for part in (*self._images[1:], self._share):
            for a, b in ((first, part), (part, first)):
                lacking = sorted(files[a].keys() - files[b].keys())
                if lacking:
                    raise DatasetError(
                        f"{folder}: {a} holds {len(files[a])} files and {b} {len(files[b])}; "
                        f"{a}/{lacking[0]}{files[a][lacking[0]]} has no partner in {b}"
                    )
        if not files[first]:
            raise DatasetError(f"{folder}: the subset is empty")
        unusual = {
            part: {stem: suffix for stem, suffix in files[part].items() if suffix != ".png"}
            for part in self._images
        }
        return _Subset(name, folder, tuple(sorted(files[first])), unusual)

    def __len__(self) -> int:
        return self._ends[-1]

    def __repr__(self) -> str:
        held = ", ".join(f"{subset.name}: {len(subset.stems)}" for subset in self._subsets)
        return f"{type(self).__name__}({str(self.root)!r}, {len(self)} examples: {held})"

    def _find(self, index: int) -> tuple[_Subset, str]:
        index = range(len(self))[index]
        k = bisect_right(self._ends, index)
        subset = self._subsets[k]
        return subset, subset.stems[index - self._ends[k] + len(subset.stems)]

    def subset_of(self, index: int) -> str:
        """Return the name of the subset that holds an example, such as 'val/traditional'."""
        return self._find(index)[0].name

    def name_of(self, index: int) -> str:
        """Return an example's full name, such as 'val/traditional/000123'."""
        subset, stem = self._find(index)
        return f"{subset.name}/{stem}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        subset, stem = self._find(index)
        item: dict[str, Any] = {}
        for part in self._images:
            path = subset.folder / part / (stem + subset.suffixes[part].get(stem, ".png"))
            item[part] = to_tensor(path)[0][0]
        shapes = {part: tuple(item[part].shape[1:]) for part in self._images}
        if len(set(shapes.values())) > 1:
            found = ", ".join(f"{part} {height} x {width}" for part, (height, width) in shapes.items())
            raise DatasetError(
                f"{self.name_of(index)}: the images differ in size: {found} pixels (height x width)"
            )
        item[self._share] = _read_share(subset.folder / self._share / f"{stem}.npy")
        item["index"] = index
        return item


class TwoAFC(_Judged):
    """Two alternatives, forced choice: which of two distortions is more alike to the reference?

    An item is a dict of `ref`, `p0` and `p1`, float32 `(3, H, W)` in [-1, 1]; `judge`, float32 `(1, 1, 1)`,
    the share of people who chose `p1`, in [0, 1]; and `index`, the item's position, an int. This is what the
    loader of `lpips` gives. Folders are listed at once, files are read and checked when an item is taken.

    Args:
        root: the folder that holds `2afc`.
        subsets: names such as 'val/traditional' or 'train/cnn'; None takes all that lie under val.

    Attributes:
        root: the folder, a `Path`.
        subsets: the names of the subsets, in the order of the items.

    Raises:
        DatasetError: a folder is missing, empty, or holds files that do not belong together. Taking an item
            raises it for a judgement that is not one value in [0, 1] and for images that differ in size.
        ImageError: on taking an item, a file that is no image, or a damaged one.
        OSError: on taking an item, a file that cannot be read now.
        ValueError: a name that is not one of a subset.
    """

    _top = "2afc"
    _splits = ("train", "val")
    _images = ("ref", "p0", "p1")
    _share = "judge"


class JND(_Judged):
    """Just noticeable differences: were two images, shown one after the other, taken for the same?

    An item is a dict of `p0` and `p1`, float32 `(3, H, W)` in [-1, 1]; `same`, float32 `(1, 1, 1)`, the share
    of people who took them for the same, in [0, 1]; and `index`, the item's position, an int.

    Args:
        root: the folder that holds `jnd`.
        subsets: names such as 'val/cnn'; None takes all that lie under val.

    Attributes:
        root: the folder, a `Path`.
        subsets: the names of the subsets, in the order of the items.

    Raises:
        DatasetError: as from `TwoAFC`.
        ImageError: as from `TwoAFC`.
        ValueError: a name that is not one of a subset.
    """

    _top = "jnd"
    _splits = ("val",)
    _images = ("p0", "p1")
    _share = "same"


def _visible(folder: Path) -> list[Path]:
    """List a folder by name, but for hidden entries; what is no folder holds nothing."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _stems(folder: Path, suffixes: Sequence[str]) -> dict[str, str]:
    """List the files of a folder, suffixes by stem, and refuse what does not belong there."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder")
    stems: dict[str, str] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 (there may be half a million)
            if suffix.lower() not in suffixes or not entry.is_file():
                raise DatasetError(
                    f"{entry.path}: does not belong here; {folder.name} holds {suffixes[0]} files"
                )
            if stem in stems:
                raise DatasetError(f"{folder}: holds both {stem}{stems[stem]} and {entry.name}")
            stems[stem] = suffix
    return stems


def _read_share(path: Path) -> Tensor:
    """Read one share as float32 `(1, 1, 1)`."""
    try:
        with path.open("rb") as file:
            value = np.load(file, allow_pickle=False)
    except Exception as error:  # damaged bytes make NumPy raise almost anything
        if is_system_error(error):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise DatasetError(f"{path}: not a NumPy array of one value ({printable(str(error))})") from error
    if not isinstance(value, np.ndarray) or value.size != 1:
        shape = value.shape if isinstance(value, np.ndarray) else "an archive"
        raise DatasetError(f"{path}: must hold one value, got {shape}")
    if value.dtype.kind not in "fiu":
        raise DatasetError(f"{path}: must hold a number, got {value.dtype}")
    share = float(value.reshape(()))
    if not 0 <= share <= 1:  # NaN is not either
        raise DatasetError(f"{path}: a share must lie in [0, 1], got {share}")
    return torch.full((1, 1, 1), share)


@dataclass(frozen=True)
class _Archive:
    """One of BAPPS' archives: its file, and what it becomes in the layout."""

    file: str
    kind: type[_Judged]
    split: str
    subsets: tuple[str, ...]


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make a batch of examples, for PyTorch's `DataLoader`.

    Raises:
        DatasetError: their images differ in size.
    """
    for name, value in examples[0].items():
        shapes = {tuple(each[name].shape) for each in examples} if isinstance(value, Tensor) else {()}
        if len(shapes) > 1:
            raise DatasetError(f"images of one batch must have one size, got {name} of {sorted(shapes)}")
    batch: dict[str, Any] = default_collate(list(examples))
    return batch


_ADDRESS = "https://perceptual-similarity.s3.us-west-2.amazonaws.com/dataset/"
_ARCHIVES = {
    "bapps-val": _Archive(
        "twoafc_val.tar.gz",
        TwoAFC,
        "val",
        ("traditional", "cnn", "superres", "deblur", "color", "frameinterp"),
    ),
    "bapps-train": _Archive("twoafc_train.tar.gz", TwoAFC, "train", ("traditional", "cnn", "mix")),
    "bapps-jnd": _Archive("jnd.tar.gz", JND, "val", ("traditional", "cnn")),
}
_LARGEST = 2**35  # bytes of an archive: several times the largest


def download(name: str, folder: str | PathLike[str], *, url: str | None = None) -> Path:
    """Fetch a part of BAPPS and unpack it, so that `TwoAFC(folder)` or `JND(folder)` reads it.

    Only paths that end in `SUBSET/ref/FILE` (or p0, p1, judge, same) are taken from the archive, and those
    three components go to the place that the layout has for them, whatever folders the archive puts around.
    An interrupted transfer is continued by the next call, each subset appears whole or not at all, and the
    archive is deleted in the end. Nothing is fetched where all the subsets are there. What a call that was
    killed left half unpacked is removed once it is a day old. No digests of the archives are published: that
    they are whole is checked, by their length and gzip's checksum, not who made them.

    Args:
        name: 'bapps-val', 'bapps-train' or 'bapps-jnd'.
        folder: the data set's root; made if need be. An archive that was brought there by hand is used.
        url: where the archive is, instead of the address that BAPPS' authors publish.

    Returns:
        The folder.

    Raises:
        DatasetError: the archive is damaged, unsafe or something else; it is then deleted.
        DownloadError: it could not be fetched, `RLPIPS_OFFLINE` forbids it, or the disk is full.
        PermissionError: the lock or the folder belongs to another user.
        ValueError: no such name.
    """
    if name not in _ARCHIVES:
        raise ValueError(f"there is no data set named {name!r}; the names are {', '.join(_ARCHIVES)}")
    archive = _ARCHIVES[name]
    folder = Path(folder)
    file = folder / archive.file
    url = url or _ADDRESS + archive.file

    def there() -> bool:
        return all((folder / archive.kind._top / archive.split / own).is_dir() for own in archive.subsets)

    shared_folders.remove_abandoned(folder, f".{archive.file}.*")
    if there():
        return folder
    if downloads.offline() and not file.exists():
        raise downloads.DownloadError(
            f"{name} is not in {folder}, and RLPIPS_OFFLINE forbids the network; "
            f"to bring it by hand, put a copy of {url} there and call this again"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with locks.lock(folder / f".{name}.lock", f"fetches {name}"):
        if there():  # another process has unpacked it meanwhile
            return folder
        if not file.exists():
            downloads.fetch([url], file, None, largest=_LARGEST)
        try:
            _unpack(file, archive, folder)
        except DatasetError:
            file.unlink()
            raise
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise downloads.DownloadError(
                    f"the disk is full: {folder} cannot hold what {file} unpacks to; "
                    "free some space, or choose a folder on another disk"
                ) from error
            raise
        file.unlink()
    return folder


def _unpack(file: Path, archive: _Archive, folder: Path) -> None:
    """Unpack an archive beside its place, check the layout, and move each subset to its place at once."""
    own = Path(archive.kind._top) / archive.split
    with tempfile.TemporaryDirectory(prefix=f".{archive.file}.", dir=folder) as name:
        temporary = Path(name)
        (temporary / own).mkdir(parents=True)
        try:
            _extract(file, temporary / own, (*archive.kind._images, archive.kind._share))
            subsets = [f"{archive.split}/{path.name}" for path in _visible(temporary / own)]
            archive.kind(temporary, subsets)
        except DatasetError as error:
            raise DatasetError(
                f"{file} is not the data set it should be: {error}; "
                "it was deleted, and another call fetches it anew"
            ) from error
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DatasetError(
                f"{file} is damaged ({printable(str(error))}) and was deleted; another call fetches it anew"
            ) from error
        (folder / own).mkdir(parents=True, exist_ok=True)
        for path in _visible(temporary / own):
            if not (folder / own / path.name).exists():
                path.replace(folder / own / path.name)


def _extract(file: Path, target: Path, parts: Sequence[str]) -> None:
    """Write the members `SUBSET/PART/FILE` of an archive under `target`, and no other."""
    # tarfile does not look at gzip's checksum where it decompresses a stream itself, so gzip does.
    with (
        progress(f"unpacking {file.name}", unit="file") as bar,
        gzip.open(file) as content,
        tarfile.open(fileobj=content, mode="r|") as tar,
    ):
        for member in _members(tar):
            path = _checked(member)
            if not member.isfile() or len(path.parts) < 3 or path.parts[-2] not in parts:
                continue
            if any(part.startswith(".") for part in path.parts[-3:]):
                continue
            place = target.joinpath(*path.parts[-3:])
            if place.exists():
                raise DatasetError(f"it holds {'/'.join(path.parts[-3:])} twice")
            place.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None
            with place.open("xb") as out:
                shutil.copyfileobj(source, out)
            bar.update()
        while content.read(2**20):  # up to the checksum
            pass
    if not any(target.iterdir()):
        raise DatasetError(f"it holds no file in a folder SUBSET/{parts[0]}")


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a stream, without the list of all of them that tarfile would keep."""
    while (member := tar.next()) is not None:
        yield member
        tar.members.clear()  # type: ignore[attr-defined]


def _checked(member: tarfile.TarInfo) -> PurePosixPath:
    """Return a member's path if it is a file or a folder and stays below where it is unpacked.

    This refuses more than tarfile's filter 'data', which Python 3.10 may lack: every link, too.
    """
    path = PurePosixPath(member.name)
    if not (member.isfile() or member.isdir()):
        kind = "a link" if member.issym() or member.islnk() else "a device or the like"
        raise DatasetError(f"its member {member.name!r} is {kind}")
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name:
        raise DatasetError(f"the path of its member {member.name!r} may lead out of the folder")
    return path
