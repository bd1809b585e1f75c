"""Bar charts of what each layer of a backbone contributes to a distance."""

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlpips.backbones.architectures import architecture
from rlpips.metric.lpips import LPIPS
from rlpips.plots.drawing import (
    BLUE,
    COLOURS,
    INK,
    check_plot_file,
    fit_text,
    format_distance,
    new_figure,
    write,
)
from rlpips.plots.measured_pairs import default_metric, evaluation_copy, image_name, read_pair
from rlpips.scoring.one_pair import warn_of_unit_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Shares = list[float]  # the contribution of each layer; their sum is the distance


def layers(
    a: Any,
    b: Any,
    *,
    metric: LPIPS | Mapping[str, LPIPS] | None = None,
    resize: int | tuple[int, int] | None = None,
    tile: int | None = None,
    normalize: bool = False,
    path: str | PathLike[str] | None = None,
) -> "Figure":
    """Draw what each layer contributes to the distance of two images, as bars whose sum is the distance.

    The first image can be compared with several images by several metrics. Then the bars of a layer stand
    side by side. There is one panel per backbone. The legend shows the distances.

    Float tensors are read as [-1, 1]. If all their values lie in [0, 1], there is a warning, unless
    `normalize=True`.

    Args:
        a: a path; a Pillow image; a NumPy array `(H, W)` or `(H, W, C)`, uint8 in [0, 255] or float in
            [0, 1]; or a tensor `(H, W)`, `(C, H, W)` or `(1, C, H, W)`, uint8 in [0, 255] or float in
            [-1, 1]. C is 3 or 1.
        b: the other image, of the same size; or a mapping of several images by the names that they have in
            the legend.
        metric: the metric, or a mapping of several metrics by their names. They are not changed. By default
            the robust metric that ships with the package.
        resize: resize all images to this (height, width), or to a square of this side, before measuring.
        tile: for huge images: measure tiles of this side one at a time, which needs less memory.
        normalize: float tensors are in [0, 1] instead of [-1, 1]. Float arrays are always in [0, 1].
        path: a .png file (300 dots per inch) or a .pdf file to write the figure to. If writing fails, no
            partial file is left.

    Returns:
        The figure. It has axes for each backbone, labelled 'alex', 'vgg' or 'squeeze'.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: `a` or `b` cannot be read or measured, or holds several images, or the sizes differ.
        MissingExtraError: matplotlib is not installed.
        OSError: the figure cannot be written.
        TypeError: `a` or `b` is nothing that holds an image.
        ValueError: the images are too small for the backbone, or `tile` is not positive; the name of the file
            does not end in .png or .pdf; there is no image or no metric to compare.
    """
    check_plot_file(path)
    others = b if isinstance(b, Mapping) else {image_name(b, "b"): b}
    metrics = metric if isinstance(metric, Mapping) else {"": metric or default_metric()}
    if not others or not metrics:
        raise ValueError(f"there is no {'metric' if others else 'image'} to compare")
    panels: dict[str, dict[str, Shares]] = {}
    for metric_name, each in metrics.items():
        panel = panels.setdefault(architecture(each.pnet_type).name, {})
        for name, other in others.items():
            # The legend leaves out what all bars have in common.
            words = (metric_name, name if len(others) > 1 or not metric_name else "")
            pair = read_pair(each, a, other, resize, normalize)
            panel[", ".join(filter(None, words))] = _measure(evaluation_copy(each), *pair, tile)
    warn_of_unit_range(normalize, a=[a], b=others.values())
    return _draw(panels, path)


def _measure(metric: LPIPS, a: Tensor, b: Tensor, tile: int | None) -> Shares:
    """Return the contribution of each layer to a distance."""
    with torch.inference_mode():
        _, shares = metric(a, b, retPerLayer=True, tile=tile)
    return [share.item() for share in shares]


def _draw(panels: Mapping[str, Mapping[str, Shares]], path: str | PathLike[str] | None) -> "Figure":
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    names = {net: architecture(net).output._fields for net in panels}  # type: ignore[attr-defined]
    # wide enough for the legend, the bars and the names below them
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
    """Draw a group of bars for each layer, with a legend above them that is `room` inches wide."""
    width = 0.8 / len(panel)
    colours = (BLUE, *COLOURS)
    for k, (name, shares) in enumerate(panel.items()):
        places = [layer + (k - (len(panel) - 1) / 2) * width for layer in range(len(shares))]
        label = f"{fit_text(name, room, 7.5)}  {format_distance(sum(shares))}"
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
