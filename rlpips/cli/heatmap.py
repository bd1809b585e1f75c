"""What draws images: the command `rlpips heatmap`, and the contact sheet of `rlpips compare`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpips.cli.options import add_metric_options, plot_file, tell

if TYPE_CHECKING:
    from rlpips.metric.lpips import LPIPS
    from rlpips.scoring.many_pairs import Measured


def add_heatmap(commands: Any) -> None:
    """Add the command to those of `rlpips`."""
    command = commands.add_parser(
        "heatmap",
        help="a picture of where two images differ",
        description="Draw two images and, over the first of them, where the metric finds them to differ. "
        "Prints their distance.",
    )
    command.add_argument("a", metavar="A", type=Path, help="an image file")
    command.add_argument("b", metavar="B", type=Path, help="another, of the same size")
    command.add_argument(
        "-o",
        dest="picture",
        type=plot_file,
        required=True,
        metavar="FILE",
        help="the picture, .png (300 dots per inch) or .pdf, written whole or not at all",
    )
    add_metric_options(command)
    command.set_defaults(run=_heatmap)


def _heatmap(options: argparse.Namespace) -> int:
    from rlpips.plots import check_plot_file, heatmap
    from rlpips.scoring.many_pairs import measure_pairs

    check_plot_file(options.picture)
    metric = _metric(options)
    given = {"resize": options.resize, "tile": options.tile}
    # Measured as `rlpips distance` does, the number and what is wrong with files are the same.
    (measured,) = measure_pairs([(options.a, options.b)], metric, **given)
    for path, problem in measured.unreadable.items():
        tell(problem, str(path))
    if measured.problem:
        tell(f"and {options.b}: {measured.problem}", str(options.a))
    if measured.unreadable or measured.problem:
        return 1
    heatmap(options.a, options.b, metric=metric, path=options.picture, **given)
    print(f"{measured.distance:.4f}")
    return 0


def draw_sheet(options: argparse.Namespace, measured: Sequence["Measured"]) -> None:
    """Write the contact sheet of pairs of files that have been measured.

    Raises:
        ValueError: there are none.
    """
    from rlpips.plots import contact_sheet

    if not measured:
        raise ValueError(f"no pair could be measured, so {options.plot} is not written")
    contact_sheet(
        [each.a for each in measured],
        [each.b for each in measured],
        [each.distance for each in measured],
        metric=_metric(options),
        resize=options.resize,
        tile=options.tile,
        path=options.plot,
    )


def _metric(options: argparse.Namespace) -> "LPIPS":
    import torch

    from rlpips.scoring.metric_cache import cached_metric

    return cached_metric(options.net, options.weights, options.version, torch.device(options.device))
