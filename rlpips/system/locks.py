"""A lock for processes and users that share a folder."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlpips.system.shared_folders import NO_FOLLOW, owner_note

logger = logging.getLogger("rlpips")

_PATIENCE = 2.0  # seconds; a shorter wait is not reported


@contextmanager
def lock(path: Path, doing: str) -> Iterator[None]:
    """Hold a lock: one process at a time holds it, the others wait.

    Everyone who may write to the folder may take the lock. A process that has to wait logs a warning. On a
    file system without `flock`, a file that exists while the lock is held takes its place.

    Args:
        path: the lock's file, in a folder that exists. It is created, and stays.
        doing: what the holder does, for the others' warning: 'fetches alexnet'.

    Raises:
        PermissionError: the lock cannot be opened. The message says what to do.
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
            f"{path} cannot be opened for writing: permission denied{owner_note(path)}; "
            f"{advice}choose a folder of your own (for weights: RLPIPS_HOME)"
        ) from error
    try:
        yield
    finally:
        held.release()


def _has_flock(path: Path, mode: int) -> bool:
    """Create the lock's file if it is missing, and say whether the system can lock it."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        handle = os.open(path, os.O_RDWR | NO_FOLLOW)
    except FileNotFoundError:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, mode)
        with suppress(PermissionError):  # another user has just created it
            os.fchmod(handle, mode)  # whatever the umask
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # another holds it
    finally:
        os.close(handle)
    return True
