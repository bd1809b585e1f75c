"""Folders that several users share: permissions, owners, and files that a killed process left."""

import logging
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger("rlpips")

ABANDONED = 24 * 3600  # seconds; no process still uses a temporary file that has not changed for longer
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows lacks it, and ordinary users make no links there


def owner_note(path: Path) -> str:
    """Return ' (it belongs to OWNER)', or '' if the owner is unknown."""
    try:
        return f" (it belongs to {path.owner()})"
    except (OSError, KeyError, NotImplementedError):
        return ""


def share_file(path: Path) -> None:
    """Let everyone who may read the folder read a file in it, whatever the umask was."""
    path.chmod(0o600 | (0o444 & path.parent.stat().st_mode))


def remove_abandoned(folder: Path, *patterns: str) -> None:
    """Remove files and folders that match `patterns` and are older than a day, as far as permitted."""
    for pattern in patterns:
        with suppress(OSError):
            for path in folder.glob(pattern):
                with suppress(OSError):
                    if time.time() - path.lstat().st_mtime > ABANDONED:
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                        logger.info("removed %s, left by an earlier process", path)
