"""The command `rlpips pairs`."""

import argparse
from pathlib import Path
from typing import Any

from rlpips.cli.options import ABOUT_DISTANCES
from rlpips.cli.pair_reports import add_report_options, report_pairs
from rlpips.errors import printable


def add_pairs(commands: Any) -> None:
    """Add the command to those of `rlpips`."""
    command = commands.add_parser(
        "pairs",
        help="compare the images of one folder with each other",
        description="Measure the distance from each image of a folder to the next one by name, or to all "
        "others.",
        epilog=ABOUT_DISTANCES,
    )
    command.add_argument("dir", metavar="DIR", type=Path, help="a folder of images")
    command.add_argument("--all", action="store_true", help="measure all pairs")
    add_report_options(command)
    command.set_defaults(run=_pairs)


def _pairs(options: argparse.Namespace) -> int:
    from rlpips.scoring.file_pairs import all_pairs, consecutive_pairs

    file_pairs = all_pairs(options.dir) if options.all else consecutive_pairs(options.dir)
    report = report_pairs(
        options, file_pairs, lambda each: f"{printable(each.a.name)}  {printable(each.b.name)}"
    )
    return 1 if report.failures else 0
