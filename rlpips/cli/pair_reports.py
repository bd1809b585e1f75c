"""What `distance`, `compare` and `pairs` share: measure pairs of files, report, tell what failed."""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rlpips.cli.failures import tell_failures, tell_left_out
from rlpips.cli.metrics import chosen_metric
from rlpips.cli.options import add_metric_options, add_output_option, output_file, positive
from rlpips.cli.output import aligned, write_output
from rlpips.system.files import descriptor_of

if TYPE_CHECKING:
    from rlpips.scoring.file_pairs import FilePairs
    from rlpips.scoring.many_pairs import Measured
    from rlpips.scoring.pair_report import PairReport


def add_report_options(command: argparse.ArgumentParser) -> Any:
    """Add the options of commands that measure files; return the group of those for output."""
    group = add_metric_options(command)
    group.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="pairs that run at once (default: 16), or images with 'pairs --all' (default: 64)",
    )
    group = command.add_argument_group("output")
    formats = group.add_mutually_exclusive_group()
    formats.add_argument("--csv", dest="format", action="store_const", const="csv", help="write CSV")
    formats.add_argument("--json", dest="format", action="store_const", const="json", help="write JSON")
    add_output_option(
        group, output_file, "write to FILE, completely or not at all; .csv and .json choose the format"
    )
    return group


def report_pairs(
    options: argparse.Namespace, file_pairs: "FilePairs", name: "Callable[[Measured], str] | None" = None
) -> "PairReport":
    """Measure pairs of files, write their distances, and tell what could not be measured.

    Args:
        options: of the command.
        file_pairs: the pairs.
        name: names a pair in the table; without it, the table is a number and has no summary.

    Raises:
        ValueError: there is nothing to measure.
    """
    if not file_pairs.pairs and not file_pairs.failures:
        tell_left_out(file_pairs.left_out)
        raise ValueError("there are no two images to compare")
    report = _measure(options, file_pairs)
    text = _text(options, report, name)
    if options.output is None:
        print(text, end="")
    else:
        write_output(options.output, text)
        if name is not None and descriptor_of(options.output) != 1:  # stdout holds the report alone
            print(_summary_line(report))
    tell_failures(report.failures)
    tell_left_out(report.left_out)
    return report


def _measure(options: argparse.Namespace, file_pairs: "FilePairs") -> "PairReport":
    from rlpips.scoring.pair_report import PairReport, measure_files
    from rlpips.system.progress import progress

    if not file_pairs.pairs:
        return PairReport([], list(file_pairs.failures), list(file_pairs.left_out))
    metric = chosen_metric(options)
    with progress(total=len(file_pairs.pairs), unit="pair", leave=False) as bar:
        return measure_files(
            file_pairs,
            metric,
            batch_size=options.batch_size,
            resize=options.resize,
            tile=options.tile,
            progress=bar.update,
        )


def _text(options: argparse.Namespace, report: "PairReport", name: "Callable[[Measured], str] | None") -> str:
    """Return the report in the format that the options, or the name of the output file, choose."""
    suffix = options.output.suffix.lower() if options.output else ""
    kind = options.format or suffix.removeprefix(".")
    if kind == "csv":
        return report.to_csv()
    if kind == "json":
        settings = {
            each: getattr(options, each) for each in ("net", "weights", "version", "resize", "device")
        }
        return json.dumps(report.to_json(settings), indent=2) + "\n"
    if name is None:
        return "".join(f"{each.distance:.4f}\n" for each in report.measured)
    rows = [(name(each), f"{each.distance:.4f}") for each in report.measured]
    return "\n".join([*aligned(rows), _summary_line(report)]) + "\n"


def _summary_line(report: "PairReport") -> str:
    count = f"{len(report.measured)} pair{'s' if len(report.measured) != 1 else ''}"
    numbers = report.summary().items()
    return ", ".join([count, *(f"{name.replace('_', ' ')} {n:.4f}" for name, n in numbers if n is not None)])
