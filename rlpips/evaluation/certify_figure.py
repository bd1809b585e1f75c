"""The curve of certified accuracy over the radius."""

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from rlpips.evaluation.certify_measurement import CertifiedTriplets
from rlpips.plots.drawing import BLUE, COLOURS, GREY, INK, check_plot_file, fit_text, new_figure, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))


def certified_curve(
    measured: Mapping[str, Mapping[str, CertifiedTriplets]],
    path: str | PathLike[str],
    radii: Mapping[str, float] | None = None,
) -> "Figure":
    """Draw the certified accuracy over the radius, with a line for each metric and case, and write a file.

    A line begins with the accuracy of the smoothed metric. A dot at the left is the accuracy of the metric
    itself, without noise and certificate.

    Args:
        measured: for each metric, and each case such as 'sigma 0.12', what `measure_certified` returned. Each
            metric has a colour, each case a style.
        path: a file that ends in .png (300 dots per inch) or .pdf. It is written whole or not at all.
        radii: radii to mark, by their labels.

    Returns:
        The figure. Its lines have the labels 'METRIC, CASE'.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
        ValueError: the name ends neither in .png nor in .pdf.
    """
    check_plot_file(path)
    figure = new_figure(5.2, 3.4, layout="constrained")
    axes = figure.subplots()
    cases = list(dict.fromkeys(case for by_case in measured.values() for case in by_case))
    colours = (BLUE, *COLOURS)
    furthest = max((value for value in (radii or {}).values()), default=0.0)
    for k, (metric, by_case) in enumerate(measured.items()):
        colour = colours[k % len(colours)]
        for case, triplets in by_case.items():
            ends = np.unique(triplets.radius)  # at each the accuracy falls
            furthest = max(furthest, float(ends[-1]))
            starts = np.concatenate([[0.0], ends[ends > 0]])
            heights = [float(triplets.certified(start).mean()) for start in starts]
            axes.plot(
                np.concatenate([starts, [1e3]]),
                [*heights, heights[-1]],
                drawstyle="steps-post",
                color=colour,
                ls=_STYLES[cases.index(case) % len(_STYLES)],
                lw=1.4,
                label=f"{fit_text(metric, 1.9, 7.5)}, {case}",
            )
            axes.plot([0], [float(triplets.natural().mean())], "o", ms=4.5, color=colour, clip_on=False)
    axes.set_xlim(0, 1.05 * furthest or 1.0)
    axes.set_ylim(0, 1.02)
    for label, radius in (radii or {}).items():
        axes.axvline(radius, color=GREY, lw=0.7, ls=":", zorder=0)
        axes.annotate(
            label,
            (radius, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=GREY,
        )
    axes.set_xlabel("l2 radius, of images in [0, 1]", fontsize=8, color=INK)
    axes.set_ylabel("certified accuracy", fontsize=8, color=INK)
    axes.tick_params(labelsize=7.5, colors=INK)
    axes.spines[["right", "top"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False, labelcolor=INK)
    write(figure, path)
    return figure
