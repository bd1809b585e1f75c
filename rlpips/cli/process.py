"""The process of a command: its streams and its signals."""

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM has come. A command then cleans up and ends as with Ctrl-C."""


@contextmanager
def usable_streams() -> Iterator[None]:
    """Replace closed streams, and escape names that stdout cannot encode."""
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if sys.stdout is None:
        # Opened for reading, so that printing fails, as it does if the shell closes stdout later.
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    stdout = sys.stdout
    if not isinstance(stdout, io.TextIOWrapper):
        yield
        return
    before = stdout.errors
    stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        stdout.reconfigure(errors=before)


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM, unless the process was started with the signal ignored."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def flush_stdout() -> OSError | None:
    """Write what stdout still holds; return the error if that fails, the first time."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Otherwise Python tries again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None
