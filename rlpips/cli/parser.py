"""The command line: its parser and its entry point. Torch is imported only by the commands that need it."""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from rlpips._version import __version__
from rlpips.cli.compare import add_compare
from rlpips.cli.data import add_data
from rlpips.cli.distance import add_distance
from rlpips.cli.evaluate import add_evaluate
from rlpips.cli.export import add_export
from rlpips.cli.heatmap import add_heatmap
from rlpips.cli.options import DISTANCES
from rlpips.cli.pairs import add_pairs
from rlpips.cli.process import run_command
from rlpips.cli.train import add_train
from rlpips.cli.triplets import add_triplets
from rlpips.cli.weights import add_weights

_COMMANDS = (
    *(add_distance, add_compare, add_pairs, add_heatmap, add_triplets),
    *(add_evaluate, add_train, add_export, add_data, add_weights),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_command(partial(_run, arguments))


def _run(arguments: Sequence[str] | None, options: argparse.Namespace) -> int:
    """Read the arguments into `options`, and run the command that they name."""
    make_parser().parse_args(arguments, options)
    logging.basicConfig(format="rlpips: %(message)s", level=logging.WARNING)
    if getattr(options, "device", None) == "auto":
        from rlpips.system.processes import best_device

        options.device = best_device()  # the one that reports name
    status: int = options.run(options)
    return status


class _Parser(argparse.ArgumentParser):
    """A parser that takes the options of all commands, before and after the command's name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_argument(
            "--traceback",
            action="store_true",
            default=argparse.SUPPRESS,
            help="after an error, show where in the code it happened",
        )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="rlpips",
        description="Measure how different images look (LPIPS, R-LPIPS).",
        epilog=f"{DISTANCES} Exit status: 0 success, 1 something failed or could not be measured, "
        "2 wrong usage, 130 interrupted, 143 terminated.",
    )
    parser.add_argument("--version", action="version", version=f"rlpips {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add_command in _COMMANDS:
        add_command(commands)
    return parser
