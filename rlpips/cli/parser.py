"""The parser of the command line. Torch is imported only by the commands that need it."""

import argparse
from typing import Any

from rlpips._version import __version__
from rlpips.cli.compare import add_compare
from rlpips.cli.data import add_data
from rlpips.cli.distance import add_distance
from rlpips.cli.evaluate import add_evaluate
from rlpips.cli.export import add_export
from rlpips.cli.heatmap import add_heatmap
from rlpips.cli.options import ABOUT_DISTANCES
from rlpips.cli.pairs import add_pairs
from rlpips.cli.train import add_train
from rlpips.cli.triplets import add_triplets
from rlpips.cli.weights import add_weights

_COMMANDS = (
    *(add_distance, add_compare, add_pairs, add_heatmap, add_triplets),
    *(add_evaluate, add_train, add_export, add_data, add_weights),
)


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
        epilog=f"{ABOUT_DISTANCES} Exit status: 0 success, 1 something failed or could not be measured, "
        "2 wrong usage, 130 interrupted, 143 terminated.",
    )
    parser.add_argument("--version", action="version", version=f"rlpips {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add_command in _COMMANDS:
        add_command(commands)
    return parser
