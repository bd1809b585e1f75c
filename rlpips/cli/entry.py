"""The entry point of the command line: run a command, tell its error, return its exit status."""

import argparse
import logging
import os
import signal
import traceback
from collections.abc import Sequence

from rlpips.cli.output import tell
from rlpips.cli.parser import make_parser
from rlpips.cli.process import Terminated, flush_stdout, sigterm_raises, usable_streams

# Errors that a command raises on purpose. Their messages are enough.
_EXPECTED = (OSError, ValueError, RuntimeError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: the command and its options; by default those of this process.

    Raises:
        SystemExit: the usage is wrong, or help was asked for.
    """
    # Before PyTorch is loaded, whose idle threads wait busily otherwise. Beside other programs, small images
    # would then take several times as long, and keep the processors busy.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = argparse.Namespace()
    failed: Exception | None = None
    with usable_streams(), sigterm_raises():
        try:
            status = _run(arguments, options)
        except Terminated:
            status = 128 + signal.SIGTERM
        except KeyboardInterrupt:
            status = 128 + signal.SIGINT
        except SystemExit:  # argparse has printed why
            unwritten = flush_stdout()
            if unwritten and not isinstance(unwritten, BrokenPipeError):
                tell(f"error: cannot write to standard output: {unwritten.strerror}")
                return 1
            raise
        except Exception as error:
            failed = error
            status = 1
        unwritten = flush_stdout()
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


def _run(arguments: Sequence[str] | None, options: argparse.Namespace) -> int:
    """Read the arguments into `options`, and run the command that they name."""
    make_parser().parse_args(arguments, options)
    logging.basicConfig(format="rlpips: %(message)s", level=logging.WARNING)
    if getattr(options, "device", None) == "auto":
        from rlpips.system.processes import best_device

        options.device = best_device()  # reports name this device
    status: int = options.run(options)
    return status


def _message(error: Exception) -> str:
    if isinstance(error, _EXPECTED) and str(error):
        return str(error)
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{said}; run again with --traceback for details"
