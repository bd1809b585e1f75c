"""The command `rlpips distance`."""

import argparse
from pathlib import Path
from typing import Any

from rlpips.cli.options import ABOUT_DISTANCES
from rlpips.cli.pair_reports import add_report_options, report_pairs


def add_distance(commands: Any) -> None:
    """Add the command to those of `rlpips`."""
    command = commands.add_parser(
        "distance",
        help="measure the distance between two images",
        description="Measure the distance between two images.",
        epilog=ABOUT_DISTANCES,
    )
    command.add_argument("a", metavar="A", type=Path, help="an image file")
    command.add_argument("b", metavar="B", type=Path, help="another image file")
    add_report_options(command)
    command.set_defaults(run=_distance)


def _distance(options: argparse.Namespace) -> int:
    from rlpips.scoring.file_pairs import FilePairs

    report = report_pairs(options, FilePairs([(options.a, options.b)]))
    return 1 if report.failures else 0
