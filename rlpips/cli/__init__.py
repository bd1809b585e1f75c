"""The command line, `rlpips`: a module for each command."""

from rlpips.cli.parser import main

__all__ = ["main"]
