"""Download of BAPPS (Zhang et al. 2018) from the address that its authors publish."""

import errno
import gzip
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath

from rlpips.data.judgements import JND, TwoAFC, list_visible
from rlpips.errors import DatasetError, DownloadError, printable
from rlpips.hub import downloads
from rlpips.system import locks, shared_folders
from rlpips.system.progress import progress


@dataclass(frozen=True)
class _Archive:
    """An archive of BAPPS: its file, and the subsets that it holds."""

    file: str
    kind: type[TwoAFC] | type[JND]
    split: str
    subsets: tuple[str, ...]


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
_LARGEST = 2**35  # bytes; several times the size of the largest archive


def download(name: str, folder: str | PathLike[str], *, url: str | None = None) -> Path:
    """Fetch a part of BAPPS and unpack it, so that `TwoAFC(folder)` or `JND(folder)` reads it.

    Nothing is fetched if all the subsets are there. An interrupted transfer goes on with the next call. Each
    subset appears whole or not at all. The archive is deleted in the end. Half-unpacked files of a call that
    was killed are removed when they are a day old.

    Only files whose path ends in `SUBSET/ref/FILE` (or p0, p1, judge, same) are unpacked, to their place in
    the layout; folders around them do not matter. The authors publish no digests, so an archive is checked
    for being whole (by its length and gzip's checksum), not for who made it.

    Args:
        name: 'bapps-val', 'bapps-train' or 'bapps-jnd'.
        folder: the data set's root, created if it is missing. An archive that lies there is used.
        url: another address of the archive.

    Returns:
        The folder.

    Raises:
        DatasetError: the archive is damaged, unsafe or something else. It is then deleted.
        DownloadError: it could not be downloaded, `RLPIPS_OFFLINE` forbids it, or the disk is full.
        PermissionError: the lock or the folder belongs to another user.
        ValueError: the name is unknown.
    """
    if name not in _ARCHIVES:
        raise ValueError(f"there is no data set named {name!r}; the names are {', '.join(_ARCHIVES)}")
    archive = _ARCHIVES[name]
    folder = Path(folder)
    file = folder / archive.file
    url = url or _ADDRESS + archive.file

    def complete() -> bool:
        subsets = folder / archive.kind.layout.top / archive.split
        return all((subsets / own).is_dir() for own in archive.subsets)

    shared_folders.remove_abandoned(folder, f".{archive.file}.*")
    if complete():
        return folder
    if downloads.offline() and not file.exists():
        raise DownloadError(
            f"{name} is not in {folder}, and RLPIPS_OFFLINE forbids the network; "
            f"copy {url} there yourself and call this again"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with locks.lock(folder / f".{name}.lock", f"fetches {name}"):
        if complete():  # another process has just unpacked it
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
                raise DownloadError(
                    f"the disk is full: {folder} cannot hold what {file} unpacks to; "
                    "free some space, or choose a folder on another disk"
                ) from error
            raise
        file.unlink()
    return folder


def _unpack(file: Path, archive: _Archive, folder: Path) -> None:
    """Unpack an archive into a temporary folder, check the layout, then move each subset to its place."""
    layout = archive.kind.layout
    own = Path(layout.top) / archive.split
    with tempfile.TemporaryDirectory(prefix=f".{archive.file}.", dir=folder) as name:
        temporary = Path(name)
        (temporary / own).mkdir(parents=True)
        try:
            _extract(file, temporary / own, (*layout.images, layout.share))
            subsets = [f"{archive.split}/{path.name}" for path in list_visible(temporary / own)]
            archive.kind(temporary, subsets)
        except DatasetError as error:
            raise DatasetError(
                f"{file} is not the data set it should be: {error}; "
                "it was deleted, and another call downloads it again"
            ) from error
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DatasetError(
                f"{file} is damaged ({printable(str(error))}) and was deleted; "
                "another call downloads it again"
            ) from error
        (folder / own).mkdir(parents=True, exist_ok=True)
        for path in list_visible(temporary / own):
            if not (folder / own / path.name).exists():
                path.replace(folder / own / path.name)


def _extract(file: Path, target: Path, kinds: Sequence[str]) -> None:
    """Write those members of an archive to `target` whose path ends in `SUBSET/KIND/FILE`."""
    # tarfile, when it decompresses a stream itself, ignores the checksum of gzip; the gzip module checks it.
    with (
        progress(f"unpacking {file.name}", unit="file") as bar,
        gzip.open(file) as content,
        tarfile.open(fileobj=content, mode="r|") as tar,
    ):
        for member in _members(tar):
            path = _safe_path(member)
            if not member.isfile() or len(path.parts) < 3 or path.parts[-2] not in kinds:
                continue
            if any(name.startswith(".") for name in path.parts[-3:]):
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
        while content.read(2**20):  # to its end, where the checksum is
            pass
    if not any(target.iterdir()):
        raise DatasetError(f"it holds no file in a folder SUBSET/{kinds[0]}")


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a stream, and let tarfile forget them, so that memory does not grow."""
    while (member := tar.next()) is not None:
        yield member
        tar.members.clear()  # type: ignore[attr-defined]


def _safe_path(member: tarfile.TarInfo) -> PurePosixPath:
    """Return the path of a member, a file or a folder; raise for a link and for a path that leads outside.

    tarfile's filter 'data' allows some links, and Python 3.10 may lack it.
    """
    path = PurePosixPath(member.name)
    if not (member.isfile() or member.isdir()):
        kind = "a link" if member.issym() or member.islnk() else "a device or the like"
        raise DatasetError(f"its member {member.name!r} is {kind}")
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name:
        raise DatasetError(f"the path of its member {member.name!r} may lead out of the folder")
    return path
