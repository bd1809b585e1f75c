"""The process around a command: its streams, its signals, how its errors are told, its exit status."""

import argparse
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rlpips.cli.output import tell

# What a command may raise for a cause that it has seen coming; the message says enough.
_FORESEEN = (OSError, ValueError, RuntimeError, ImportError)


class Terminated(KeyboardInterrupt):
    """SIGTERM has come; a command ends as with Ctrl-C, and cleans up on its way."""


def run_command(command: Callable[[argparse.Namespace], int]) -> int:
    """Run a command, tell what went wrong in one line, and return the exit status.

    Args:
        command: is given an empty namespace for the options that it reads, of which `traceback` counts here.

    Raises:
        SystemExit: as the command does, such as for wrong usage.
    """
    # Before PyTorch is loaded, whose idle threads wait busily otherwise. Where other programs run, small
    # images would take several times the time, and the processors' work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = argparse.Namespace()
    failed: Exception | None = None
    with _streams(), _sigterm_raises():
        try:
            status = command(options)
        except Terminated:
            status = 128 + signal.SIGTERM
        except KeyboardInterrupt:
            status = 128 + signal.SIGINT
        except SystemExit:  # argparse has said why
            unwritten = _output_fails()
            if unwritten and not isinstance(unwritten, BrokenPipeError):
                tell(f"error: cannot write to standard output: {unwritten.strerror}")
                return 1
            raise
        except Exception as error:
            failed = error
            status = 1
        unwritten = _output_fails()
        if isinstance(unwritten or failed, BrokenPipeError):  # the reader of a pipe, such as head, has gone
            return 141
        if failed is not None and getattr(options, "traceback", False):
            traceback.print_exception(failed)
        if unwritten:
            tell(f"error: cannot write to standard output: {unwritten.strerror}")
            return status or 1
        if failed is not None:
            tell(f"error: {_message(failed)}")
    return status


def _message(error: Exception) -> str:
    if isinstance(error, _FORESEEN) and str(error):
        return str(error)
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{said}; run again with --traceback for details"


@contextmanager
def _streams() -> Iterator[None]:
    """Stand in for streams that were closed, and let names that stdout cannot encode be escaped."""
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if sys.stdout is None:
        # Opened for reading, so that what is printed fails as it does where the shell closes stdout later.
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
def _sigterm_raises() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM, unless who started the process has it ignored."""
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


def _output_fails() -> OSError | None:
    """Write what stdout still holds, or return why that fails, once."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None
