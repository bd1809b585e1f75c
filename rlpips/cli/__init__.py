"""The command line, `rlpips`: a module for each command."""

from rlpips.cli.commands import main

__all__ = ["main"]
