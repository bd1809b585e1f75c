"""The command line, `rlpips`: a module for each command."""

from rlpips.cli.entry import main

__all__ = ["main"]
