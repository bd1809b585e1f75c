"""What each layer of a backbone contributes to a distance."""

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch

from rlpips.backbones.architectures import architecture
from rlpips.metric.lpips import LPIPS
from rlpips.plots.drawing import BLUE, COLOURS, INK, check_plot_file, fit_text, new_figure, number, write
from rlpips.plots.measured_pairs import at_rest, default_metric, name_of, read_pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Shares = list[float]


def layers(
    a: Any,
    b: Any,
    *,
    metric: LPIPS | Mapping[str, LPIPS] | None = None,
    resize: int | tuple[int, int] | None = None,
    tile: int | None = None,
    path: str | PathLike[str] | None = None,
) -> "Figure":
    """Draw what each layer contributes to the distance of two images, as bars whose sum is the distance.

    Several images may be compared with the first, by several metrics: for each the bars of a layer stand side
    by side, in a panel for each backbone. The legend tells the distances.

    Args:
        a: an image as for `rlpips.distance`: a path, a Pillow image, an array or a tensor.
        b: another, of the same size; or several, by the names that the legend shall give them.
        metric: what measures, or several by their names; they stay as they are. By default the robust metric
            that ships.
        resize: as for `heatmap`.
        tile: as for `heatmap`.
        path: as for `heatmap`.

    Returns:
        The figure, with an axes for each backbone, labelled by LPIPS' name for it: 'alex', 'vgg', 'squeeze'.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: something is not one image that can be measured, or the sizes differ.
        MissingExtraError: matplotlib is not installed.
        OSError: the figure cannot be written.
        TypeError: an argument is nothing that holds an image.
        ValueError: as from `LPIPS`; there is nothing to compare; the name of the file ends neither in .png
            nor in .pdf.
    """
    check_plot_file(path)
    others = b if isinstance(b, Mapping) else {name_of(b, "b"): b}
    metrics = metric if isinstance(metric, Mapping) else {"": metric or default_metric()}
    if not others or not metrics:
        raise ValueError(f"there is no {'metric' if others else 'image'} to compare")
    panels: dict[str, dict[str, Shares]] = {}
    for metric_name, each in metrics.items():
        panel = panels.setdefault(architecture(each.pnet_type).name, {})
        for name, other in others.items():
            # What all have in common needs no words.
            words = (metric_name, name if len(others) > 1 or not metric_name else "")
            panel[", ".join(filter(None, words))] = _measure(at_rest(each), a, other, resize, tile)
    return _draw(panels, path)


def _measure(metric: LPIPS, a: Any, b: Any, resize: int | tuple[int, int] | None, tile: int | None) -> Shares:
    """Return each layer's share of a distance."""
    with torch.inference_mode():
        _, shares = metric(*read_pair(metric, a, b, resize), retPerLayer=True, tile=tile)
    return [share.item() for share in shares]


def _draw(panels: Mapping[str, Mapping[str, Shares]], path: str | PathLike[str] | None) -> "Figure":
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    names = {net: architecture(net).output._fields for net in panels}  # type: ignore[attr-defined]
    # as wide as the legend, the bars and the names below them ask for
    widths = [
        max(2.3, len(names[net]) * max(0.075 * max(map(len, names[net])), 0.12 * len(panel)))
        for net, panel in panels.items()
    ]
    legend = 0.15 * max(map(len, panels.values()))
    figure = new_figure(0.7 + sum(widths), 2.0 + legend, layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True, width_ratios=widths)
    for axes, (net, panel), width in zip(row[0], panels.items(), widths, strict=True):
        axes.set_label(net)
        _draw_panel(axes, panel, names[net], width - 0.7)
    row[0, 0].set_ylabel("contribution to the distance", fontsize=8, color=INK)
    row[0, 0].yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    row[0, 0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if path is not None:
        write(figure, path)
    return figure


def _draw_panel(axes: "Axes", panel: Mapping[str, Shares], names: tuple[str, ...], room: float) -> None:
    """Draw a group of bars for each layer and, above them, whose they are, in so many inches."""
    width = 0.8 / len(panel)
    colours = (BLUE, *COLOURS)
    for k, (name, shares) in enumerate(panel.items()):
        places = [layer + (k - (len(panel) - 1) / 2) * width for layer in range(len(shares))]
        label = f"{fit_text(name, room, 7.5)}  {number(sum(shares))}"
        axes.bar(places, shares, 0.94 * width, color=colours[k % len(colours)], label=label)
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(labelsize=7.5, length=0, colors=INK)
    axes.yaxis.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["left", "right", "top"]].set_visible(False)
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=7.5, handlelength=0.9,
        handleheight=0.9, borderaxespad=0.3, labelspacing=0.3, labelcolor=INK,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
