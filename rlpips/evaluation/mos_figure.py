"""The figure of a report on scored pairs: people's scores against distances."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from rlpips.evaluation.logistic import Array, fit_logistic
from rlpips.plots.drawing import BLUE, COLOURS, INK, check_plot_file, fit_text, new_figure, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS = "os^Dv"


def scatter(
    distances: Mapping[str, Array],
    scores: Array,
    types: Sequence[str],
    path: str | PathLike[str],
    label: str = "score",
) -> "Figure":
    """Draw people's scores of pairs against distances, with a panel for each metric, and write a file.

    A panel has a dot for each pair, coloured by its type, and the logistic curve that was fitted to all pairs
    (`fit_logistic`). Distances that are not finite are left out.

    Args:
        distances: for each metric the distances, `(N,)`.
        scores: people's scores, `(N,)`.
        types: the type of each pair.
        path: a file that ends in .png (300 dots per inch) or .pdf. It is written whole or not at all.
        label: what the scores are.

    Returns:
        The figure. It has axes for each metric, with the metric's name as label.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
        ValueError: the name ends neither in .png nor in .pdf.
    """
    check_plot_file(path)
    names = list(dict.fromkeys(types))
    columns = min(len(names), 2 * len(distances))
    legend = 0.16 * -(-len(names) // columns) + 0.1 if len(names) > 1 else 0
    figure = new_figure(0.5 + 2.5 * len(distances), 2.6 + legend, layout="constrained")
    row = figure.subplots(1, len(distances), squeeze=False, sharey=True)[0]
    for axes, (metric, d) in zip(row, distances.items(), strict=True):
        axes.set_label(metric)
        axes.set_title(fit_text(metric, 2.4, 8.5), fontsize=8.5, color=INK, parse_math=False)
        _draw_panel(axes, d, scores, np.array(types), names)
    row[0].set_ylabel(label, fontsize=8, color=INK)
    figure.supxlabel("distance", fontsize=8, color=INK)
    if len(names) > 1:
        shown = figure.legend(
            *row[0].get_legend_handles_labels(), loc="outside upper left", ncols=columns, frameon=False,
            fontsize=7.5, handletextpad=0.2, columnspacing=1, labelspacing=0.3, labelcolor=INK,
        )  # fmt: skip
        for text in shown.get_texts():
            text.set_parse_math(False)
    write(figure, path)
    return figure


def _draw_panel(axes: "Axes", d: Array, scores: Array, types: "np.ndarray[tuple[int], np.dtype[np.str_]]",
                names: Sequence[str]) -> None:  # fmt: skip
    """Draw the pairs of one metric, and the curve if there is one."""
    colours = (BLUE, *COLOURS)
    known = np.isfinite(d)
    for k, name in enumerate(names):
        mark, colour = _MARKS[k // len(colours) % len(_MARKS)], colours[k % len(colours)]
        chosen = known & (types == name)
        axes.plot(d[chosen], scores[chosen], mark, ms=3, mew=0, alpha=0.75, color=colour, label=name)
    if np.ptp(d[known]) > 0 and np.ptp(scores[known]) > 0:
        line = np.linspace(d[known].min(), d[known].max(), 200)
        axes.plot(line, fit_logistic(d[known], scores[known])(line), color=INK, lw=1.1, label="_curve")
    axes.tick_params(labelsize=7.5, colors=INK)
    axes.spines[["right", "top"]].set_visible(False)
