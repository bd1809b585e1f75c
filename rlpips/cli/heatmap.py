"""The command `rlpips heatmap`."""

import argparse
from pathlib import Path
from typing import Any

from rlpips.cli.metrics import chosen_metric
from rlpips.cli.options import add_metric_options, add_output_option, plot_file
from rlpips.cli.output import tell


def add_heatmap(commands: Any) -> None:
    """Add the command to those of `rlpips`."""
    command = commands.add_parser(
        "heatmap",
        help="draw where two images differ",
        description="Draw two images, and over the first one where they differ. Print their distance.",
    )
    command.add_argument("a", metavar="A", type=Path, help="an image file")
    command.add_argument("b", metavar="B", type=Path, help="another image file of the same size")
    add_output_option(
        command,
        plot_file,
        "the picture, .png (300 dots per inch) or .pdf, written completely or not at all",
        required=True,
    )
    add_metric_options(command)
    command.set_defaults(run=_heatmap)


def _heatmap(options: argparse.Namespace) -> int:
    from rlpips.plots import check_plot_file, heatmap
    from rlpips.scoring.many_pairs import measure_pairs

    check_plot_file(options.output)
    metric = chosen_metric(options)
    given = {"resize": options.resize, "tile": options.tile}
    # As `rlpips distance` measures, so that the number and the errors are the same.
    (measured,) = measure_pairs([(options.a, options.b)], metric, **given)
    for path, problem in measured.unreadable.items():
        tell(problem, str(path))
    if measured.problem:
        tell(f"and {options.b}: {measured.problem}", str(options.a))
    if measured.unreadable or measured.problem:
        return 1
    heatmap(options.a, options.b, metric=metric, path=options.output, **given)
    print(f"{measured.distance:.4f}")
    return 0
