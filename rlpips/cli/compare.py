"""The command `rlpips compare`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpips.cli.metrics import chosen_metric
from rlpips.cli.options import ABOUT_DISTANCES, add_plot_option
from rlpips.cli.pair_reports import add_report_options, report_pairs
from rlpips.errors import printable

if TYPE_CHECKING:
    from rlpips.scoring.pair_report import PairReport


def add_compare(commands: Any) -> None:
    """Add the command to those of `rlpips`."""
    command = commands.add_parser(
        "compare",
        help="compare images of the same name in two folders",
        description="Measure the distances between images of the same name in two folders, and their mean.",
        epilog=ABOUT_DISTANCES,
    )
    command.add_argument("dir0", metavar="DIR0", type=Path, help="a folder of images")
    command.add_argument("dir1", metavar="DIR1", type=Path, help="another, with files of the same names")
    output = add_report_options(command)
    add_plot_option(output, "draw the most and the least different pairs, and where they differ")
    command.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    if options.plot is not None:
        from rlpips.plots import check_plot_file

        check_plot_file(options.plot)
    from rlpips.scoring.file_pairs import pairs_by_name

    file_pairs = pairs_by_name(options.dir0, options.dir1)
    report = report_pairs(options, file_pairs, lambda each: printable(each.a.name))
    if options.plot is not None:
        _draw(options, report)
    return 1 if report.failures else 0


def _draw(options: argparse.Namespace, report: "PairReport") -> None:
    """Write the contact sheet of the pairs that were measured.

    Raises:
        ValueError: there are none.
    """
    from rlpips.plots import contact_sheet

    if not report.measured:
        raise ValueError(f"no pair could be measured, so {options.plot} is not written")
    contact_sheet(
        [each.a for each in report.measured],
        [each.b for each in report.measured],
        [each.distance for each in report.measured],
        metric=chosen_metric(options),
        resize=options.resize,
        tile=options.tile,
        path=options.plot,
    )
