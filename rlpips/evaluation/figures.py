"""Figures of reports: densities of distances, with a panel for each metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from rlpips.evaluation.robustness_report import RobustnessReport
from rlpips.evaluation.scores import Array, accuracy, jnd_score, margin
from rlpips.plots.drawing import BLUE, COLOURS, GREY, INK, check_plot_file, new_figure, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class _Series:
    """One kind of values in a panel.

    Attributes:
        label: stands at the left.
        values: `(N,)`.
        colour: of the density, the median and the label.
        filled: draw the density as an area instead of a line.
        dashed: draw the density as a dashed line.
        note: stands behind the median.
    """

    label: str
    values: Array
    colour: str
    filled: bool = False
    dashed: bool = False
    note: str = ""


@dataclass(frozen=True)
class _Panel:
    """What is drawn for one metric."""

    title: str
    series: list[_Series]


def histograms(report: RobustnessReport, path: str | PathLike[str]) -> "Figure":
    """Draw the distances of a robustness report, with a panel for each metric, and write a file.

    Each panel shows densities on a logarithmic axis, scaled to the same height: ordinary distortions (grey),
    BYOL's augmentations, attacks on this metric (solid) and on the other metrics together (dashed). Above
    them are the medians and quartiles. All panels share one axis. The number over a panel is the inflation by
    the strongest attack: the median attacked distance divided by the median distance of ordinary distortions.

    Args:
        report: what `rlpips.evaluation.robustness` returned.
        path: a file that ends in .png (300 dots per inch) or .pdf. It is written whole or not at all.

    Returns:
        The figure. For each metric it has axes with the labels 'medians: METRIC' and 'densities: METRIC'.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
        ValueError: the name ends neither in .png nor in .pdf.
    """
    panels = {m: _Panel(_robustness_title(report, m), _robustness_series(report, m)) for m in report.metrics}
    return _draw(panels, "distance to the original image", path)


def margins(judged: Mapping[str, Mapping[str, Sequence[Array]]], path: str | PathLike[str]) -> "Figure":
    """Draw how clearly metrics agree with people on triplets, with a panel for each metric, and write a file.

    Each panel shows densities of a ratio, on a logarithmic axis: the distance of the image that people did
    not choose, divided by the distance of the image that they chose. Right of the line at 1 the metric agrees
    with people. The share of triplets there is the accuracy, which stands beside the medians. Triplets on
    which people are tied are left out.

    Args:
        judged: for each metric, and each case such as 'natural' or an attack, columns `d0`, `d1` and `judge`,
            each `(N,)`. The first case is drawn filled.
        path: a file that ends in .png (300 dots per inch) or .pdf. It is written whole or not at all.

    Returns:
        The figure. For each metric it has axes with the labels 'medians: METRIC' and 'densities: METRIC'.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
        ValueError: the name ends neither in .png nor in .pdf.
    """
    panels = {}
    for metric, cases in judged.items():
        series = []
        for k, (case, (d0, d1, judge)) in enumerate(cases.items()):
            ratio = np.exp(np.clip(margin(d0, d1, judge), -50, 50))
            right = accuracy(d0, d1, judge).mean()
            colour = GREY if k == 0 else COLOURS[(k - 1) % len(COLOURS)]
            note = f"{100 * right:.0f} % right"
            series.append(_Series(case, ratio[np.isfinite(ratio)], colour, filled=k == 0, note=note))
        panels[metric] = _Panel(metric, series)
    label = "ratio of distances: the image not chosen / the image that people chose"
    return _draw(panels, label, path, line=1.0)


def agreement(judged: Mapping[str, Sequence[Array]], path: str | PathLike[str]) -> "Figure":
    """Draw distances of pairs that look the same and of pairs that do not, with a panel for each metric.

    The number over a panel is the mean average precision (see `rlpips.evaluation.jnd_score`).

    Args:
        judged: for each metric two columns, each `(N,)`: distances, and the share of people who saw no
            difference. Pairs on which people are tied are left out.
        path: a file that ends in .png (300 dots per inch) or .pdf. It is written whole or not at all.

    Returns:
        The figure. For each metric it has axes with the labels 'medians: METRIC' and 'densities: METRIC'.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
        ValueError: the name ends neither in .png nor in .pdf.
    """
    panels = {}
    for metric, (d, same) in judged.items():
        series = [
            _Series("seen as the same", d[same > 0.5], BLUE),
            _Series("seen as different", d[same < 0.5], GREY, filled=True),
        ]
        panels[metric] = _Panel(f"{metric}\nmAP {jnd_score(d, same):.3f}", series)
    return _draw(panels, "distance between the two images", path)


def _draw(
    panels: Mapping[str, _Panel], label: str, path: str | PathLike[str], line: float | None = None
) -> "Figure":
    """Draw panels side by side with a common axis, and a vertical line if one is given; write the file."""
    check_plot_file(path)
    rows = len(next(iter(panels.values())).series)
    groups = [each.values for panel in panels.values() for each in panel.series]
    edges = _bin_edges(groups) if line is None else _bin_edges_around(line, groups)
    height = 0.45 + 0.17 * rows + 1.75
    figure = new_figure(1.65 + 2.3 * len(panels), height, layout="constrained")
    grid = figure.subplots(2, len(panels), squeeze=False, sharex=True, height_ratios=[0.17 * rows, 1.45])
    for column, (metric, panel) in enumerate(panels.items()):
        medians, densities = grid[0, column], grid[1, column]
        medians.set_label(f"medians: {metric}")
        densities.set_label(f"densities: {metric}")
        medians.set_title("\n".join(map(_short, panel.title.splitlines())), fontsize=8.5, color=INK)
        if line is not None:
            for axes in (medians, densities):
                axes.axvline(line, color=INK, lw=0.8, zorder=0)
        _draw_medians(medians, panel.series, first=column == 0, edges=edges)
        _draw_densities(densities, panel.series, edges)
    grid[1, 0].set_ylabel("density (a.u.)", fontsize=8, color=INK)
    figure.supxlabel(label, fontsize=8, color=INK)
    write(figure, path)
    return figure


def _robustness_series(report: RobustnessReport, metric: str) -> list[_Series]:
    """Return what the panel of a metric shows. All panels of a report have the same rows."""
    series = [
        _Series("ordinary distortions", report.ordinary(metric), GREY, filled=True),
        _Series("BYOL augmentations", report.augmented[metric], BLUE),
    ]
    others = [source for source in report.metrics if source != metric]
    for k, attack in enumerate(report.attacks):
        colour = COLOURS[k % len(COLOURS)]
        series.append(_Series(f"{attack} white-box", report.attacked[metric, attack][metric], colour))
        if others:
            values = np.concatenate([report.attacked[source, attack][metric] for source in others])
            series.append(_Series(f"{attack} transferred", values, colour, dashed=True))
    return series


def _bin_edges(groups: Sequence[Array]) -> Array:
    """Return the edges of the bins of all panels, equally wide on a logarithmic axis."""
    values = np.concatenate(groups)
    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive):
        return np.geomspace(1e-3, 1, 25)
    # A few distances near 0 must not squeeze all others into a corner. They go to the first bin.
    low = max(positive.min(), np.quantile(positive, 0.01) / 1.5, positive.max() / 1e4)
    fewest = min(map(len, groups))
    bins = int(np.clip(8 * fewest**0.3, 16, 48))
    return np.geomspace(low / 1.05, positive.max() * 1.05, bins + 1)


def _bin_edges_around(line: float, groups: Sequence[Array]) -> Array:
    """Return edges of bins, equally wide on a logarithmic axis; the line is one of them."""
    logs = [np.log(values / line) for values in groups if len(values)]
    # The few values beyond go to the outermost bins.
    lowest = min((float(np.quantile(each, 0.03)) for each in logs), default=0)
    highest = max((float(np.quantile(each, 0.97)) for each in logs), default=0)
    low, high = np.clip(lowest, -np.log(100), -np.log(2)), np.clip(highest, np.log(4), np.log(100))
    width = (high - low) / float(np.clip(5 * min(map(len, groups)) ** 0.3, 16, 48))
    steps = np.arange(np.floor(low / width), np.ceil(high / width) + 1)
    edges: Array = line * np.exp(width * steps)
    return edges


def _draw_densities(axes: "Axes", series: Sequence[_Series], edges: Array) -> None:
    for each in series:
        counts, _ = np.histogram(np.clip(each.values, edges[0], edges[-1]), edges)
        density = counts / max(1, counts.max())
        if each.filled:
            axes.stairs(density, edges, fill=True, color=each.colour, alpha=0.35, label=each.label)
        else:
            style = (0, (2.5, 1.2)) if each.dashed else "-"
            axes.stairs(density, edges, color=each.colour, lw=1.3, ls=style, label=each.label)
        if len(each.values):
            axes.axvline(_median(each, edges), color=each.colour, lw=0.7, ls=":", zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.08)
    axes.set_yticks([])
    _label_decades(axes, edges)
    axes.spines[["left", "right", "top"]].set_visible(False)


def _draw_medians(axes: "Axes", series: Sequence[_Series], *, first: bool, edges: Array) -> None:
    """Draw a row for each series: a bar between the quartiles, and a dot and a number for the median."""
    middle = float(np.sqrt(edges[0] * edges[-1]))
    for row, each in enumerate(series):
        if not len(each.values):
            continue
        median = _median(each, edges)
        quartiles = np.clip(np.quantile(each.values, [0.25, 0.75]), edges[0], edges[-1])
        axes.plot(quartiles, [row, row], color=each.colour, lw=2.2, alpha=0.45, solid_capstyle="butt")
        face = "white" if each.dashed else each.colour
        axes.plot([median], [row], "o", ms=4, color=each.colour, mfc=face, mew=1.1, clip_on=False)
        right = median < middle
        axes.annotate(
            f"{np.median(each.values):#.3g}" + (f", {each.note}" if each.note else ""),
            (quartiles[1] if right else quartiles[0], row),
            xytext=(5 if right else -5, -0.5),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=7,
            color=each.colour,
            bbox={"fc": "white", "ec": "none", "pad": 0.8},
        )
    axes.set_ylim(len(series) - 0.4, -0.6)
    axes.set_yticks(range(len(series)) if first else [])
    axes.tick_params(left=False, bottom=False, which="both")
    if first:
        for label, each in zip(
            axes.set_yticklabels([e.label for e in series], fontsize=7.5), series, strict=True
        ):
            label.set_color(each.colour)
    axes.spines[:].set_visible(False)


def _label_decades(axes: "Axes", edges: Array) -> None:
    """Label the axis with plain numbers, few enough to read."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    steps = (1,) if edges[-1] / edges[0] > 300 else (1, 3) if edges[-1] / edges[0] > 8 else (1, 2, 5)
    ticks = [step * 10.0**power for power in range(-6, 4) for step in steps]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if edges[0] <= tick <= edges[-1]]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=7.5, colors=INK)


def _short(label: str) -> str:
    """Cut the beginning of a label that is wider than a panel, such as the path of a checkpoint."""
    return label if len(label) <= 34 else f"…{label[-33:]}"


def _median(series: _Series, edges: Array) -> Any:
    return np.clip(np.median(series.values), edges[0], edges[-1])


def _robustness_title(report: RobustnessReport, metric: str) -> str:
    inflation = max(report.inflation(metric, attack) for attack in report.attacks)
    return f"{metric}\ninflation {inflation:#.3g}"
