"""A folder that several processes and users share: locks, permissions, and what was left behind."""

import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger("rlpips")

ABANDONED = 24 * 3600  # seconds; a temporary file that has not changed for longer belongs to no process
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has none, nor links that anyone may make
_PATIENCE = 2.0  # seconds of waiting that need no word


@contextmanager
def lock(path: Path, doing: str) -> Iterator[None]:
    """Hold a lock: of all processes that ask for it, one at a time.

    Whoever may write the folder may take the lock. A process that has to wait says so in a warning. Where the
    file system has no `flock`, a file that is there while the lock is held takes its place.

    Args:
        path: the lock's file, in a folder that exists; it is made and stays.
        doing: what the holder does, for those who wait: 'fetches alexnet'.

    Raises:
        PermissionError: the lock cannot be opened; the message says what to do.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    mode = 0o666 & path.parent.stat().st_mode
    hint = ""
    try:
        if _has_flock(path, mode):
            held = FileLock(path, mode=mode)
        else:
            path = path.with_name(path.name + ".held")
            logger.warning("the file system of %s has no flock; %s takes its place", path.parent, path.name)
            hint = "; if no such process runs, delete that file"
            held = SoftFileLock(path, mode=mode)
        try:
            held.acquire(timeout=_PATIENCE)
        except Timeout:
            logger.warning("waiting for another process that %s and holds %s%s", doing, path, hint)
            held.acquire()
    except PermissionError as error:
        advice = "delete it if no process of rlpips runs, or " if path.exists() else ""
        raise PermissionError(
            f"{path} cannot be opened for writing: permission denied{belongs(path)}; "
            f"{advice}choose a folder of your own (for weights: RLPIPS_HOME)"
        ) from error
    try:
        yield
    finally:
        held.release()


def _has_flock(path: Path, mode: int) -> bool:
    """Tell whether a lock's file, which is made if need be, can be locked by `flock` or Windows' way."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        handle = os.open(path, os.O_RDWR | NO_FOLLOW)
    except FileNotFoundError:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, mode)
        with suppress(PermissionError):  # another user has made it meanwhile
            os.fchmod(handle, mode)  # whatever the umask
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # another holds it
    finally:
        os.close(handle)
    return True


def belongs(path: Path) -> str:
    """Return ' (it belongs to OWNER)', or nothing where that cannot be known."""
    try:
        return f" (it belongs to {path.owner()})"
    except (OSError, KeyError, NotImplementedError):
        return ""


def share(path: Path) -> None:
    """Let those read a file who may read its folder, whatever the umask it was made under."""
    path.chmod(0o600 | (0o444 & path.parent.stat().st_mode))


def remove_old(folder: Path, *patterns: str) -> None:
    """Remove the files and folders that match `patterns` and are older than a day, where permitted."""
    for pattern in patterns:
        with suppress(OSError):
            for path in folder.glob(pattern):
                with suppress(OSError):
                    if time.time() - path.lstat().st_mtime > ABANDONED:
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                        logger.info("removed %s, which an earlier process left", path)
