"""Heat maps: two images, and where they differ, drawn over the first."""

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rlpips.metric.lpips import LPIPS
from rlpips.plots.drawing import (
    INK,
    check_plot_file,
    fit_text,
    format_distance,
    new_figure,
    place_axes,
    write,
    write_text,
)
from rlpips.plots.measured_pairs import MeasuredPair, default_metric, evaluation_copy, image_name, measure_map
from rlpips.scoring.one_pair import warn_of_unit_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

# All lengths are in inches.
_WIDTH, _HEIGHT = 2.0, 3.0  # largest size of an image when the three are side by side
_WIDE, _LONG = 2.4, 5.2  # images wider than _WIDE times their height are stacked and drawn _LONG wide
_NARROW, _LOW = 1.2, 0.7  # smallest width of a title, smallest height of a colour bar
_TITLE, _GAP, _MARGIN = 0.24, 0.12, 0.08
_BAR, _TICKS = 0.1, 0.62

_DARK, _LIGHT = 0.1, 0.62  # how black and white of an image are drawn below its map; the map is brighter


def heatmap(
    a: Any,
    b: Any,
    *,
    metric: LPIPS | None = None,
    resize: int | tuple[int, int] | None = None,
    tile: int | None = None,
    normalize: bool = False,
    path: str | PathLike[str] | None = None,
) -> "Figure":
    """Draw two images and a map of where they differ for a metric, over the first image in grey.

    The map is what `LPIPS(spatial=True)` returns. Its colours go from 0, where the image shows through, to
    its largest value. The number above the map is the distance of the two images.

    Float tensors are read as [-1, 1]. If all their values lie in [0, 1], there is a warning, unless
    `normalize=True`.

    Args:
        a: a path; a Pillow image; a NumPy array `(H, W)` or `(H, W, C)`, uint8 in [0, 255] or float in
            [0, 1]; or a tensor `(H, W)`, `(C, H, W)` or `(1, C, H, W)`, uint8 in [0, 255] or float in
            [-1, 1]. C is 3 or 1.
        b: the other image, of the same size.
        metric: the metric, which is not changed. By default the robust metric that ships with the package.
        resize: resize all images to this (height, width), or to a square of this side, before measuring.
        tile: for huge images: measure tiles of this side one at a time, which needs less memory.
        normalize: float tensors are in [0, 1] instead of [-1, 1]. Float arrays are always in [0, 1].
        path: a .png file (300 dots per inch) or a .pdf file to write the figure to. If writing fails, no
            partial file is left.

    Returns:
        The figure, with axes labelled 'a', 'b', 'map' and 'scale'. The last image of 'map' holds the local
        distances, `(H, W)`.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: `a` or `b` cannot be read or measured, or holds several images, or the sizes differ.
        MissingExtraError: matplotlib is not installed.
        OSError: the figure cannot be written.
        TypeError: `a` or `b` is nothing that holds an image.
        ValueError: the images are too small for the backbone, or `tile` is not positive; the name of the file
            does not end in .png or .pdf.
    """
    check_plot_file(path)
    metric = evaluation_copy(metric or default_metric())
    pair = measure_map(metric, a, b, resize=resize, tile=tile, normalize=normalize)
    warn_of_unit_range(normalize, a=[a], b=[b])
    figure = _draw(pair, image_name(a, "a"), image_name(b, "b"))
    if path is not None:
        write(figure, path)
    return figure


def _draw(pair: MeasuredPair, name_a: str, name_b: str) -> "Figure":
    """Draw images and map side by side, or stacked if they are wide, and a colour bar beside the map."""
    height, width = pair.map.shape
    stacked = width > _WIDE * height
    scale = _LONG / width if stacked else min(_WIDTH / width, _HEIGHT / height)
    across, down = scale * width, scale * height
    bar = max(down, _LOW)
    aside = max(0.0, _NARROW - across) / 2  # space on both sides of a narrow image, for its title
    step = (0.0, _TITLE + down + _GAP) if stacked else (across + 2 * aside + _GAP, 0.0)
    left, top = _MARGIN + aside, _MARGIN + _TITLE
    figure = new_figure(
        left + 2 * step[0] + across + aside + _GAP + _BAR + _TICKS + _MARGIN,
        top + 2 * step[1] + bar + _MARGIN,
    )
    titles = {"a": name_a, "b": name_b, "map": f"distance {format_distance(pair.distance)}"}
    for k, (label, title) in enumerate(titles.items()):
        x, y = left + k * step[0], top + k * step[1]
        axes = place_axes(figure, x, y, across, down, label)
        frame(axes)
        if label == "map":
            colours = draw_map(axes, pair, float(pair.map.max()))
        else:
            axes.imshow(getattr(pair, label))
        text = fit_text(title, across + 2 * aside, 8)
        write_text(figure, x + across / 2, y - 0.06, text, 8, ha="center", va="bottom")
    axes = place_axes(figure, x + across + aside + _GAP, y, _BAR, bar, "scale")
    draw_scale(axes, colours, ticks=min(6, round(2.5 * bar)))
    return figure


def frame(axes: "Axes") -> None:
    """Give an image a thin frame and no ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=INK, linewidth=0.4)


def draw_map(axes: "Axes", pair: MeasuredPair, largest: float) -> "ScalarMappable":
    """Draw local distances over the first image, in colours from 0 to `largest`."""
    from matplotlib.colors import Normalize

    axes.imshow(_grey(pair.a), cmap="gray", vmin=0, vmax=1)
    norm = Normalize(0, largest if largest > 0 else 1)  # the largest distance of equal images is 0
    return axes.imshow(pair.map, cmap=_heat(), norm=norm)


def draw_scale(axes: "Axes", colours: "ScalarMappable", *, ticks: int, horizontal: bool = False) -> None:
    """Draw the colour bar of maps into axes of its own, as the colours look over the image."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    numbers = ScalarFormatter(useMathText=True)
    numbers.set_powerlimits((-2, 4))  # small distances have one power of ten, at the end of the bar
    bar = axes.figure.colorbar(
        colours,
        cax=axes,
        orientation="horizontal" if horizontal else "vertical",
        ticks=MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]),
        format=numbers,
    )
    axes.set_facecolor(str((_DARK + _LIGHT) / 2))
    assert bar.solids is not None
    bar.solids.set_rasterized(True)  # in a PDF, gaps would show between small transparent patches
    bar.outline.set(edgecolor=INK, linewidth=0.4)
    axes.tick_params(labelsize=7, length=2, width=0.4, pad=2, colors=INK)
    bar.set_label(
        "local distance", loc="left" if horizontal else "center", fontsize=7.5, color=INK, labelpad=3
    )
    bar.long_axis.get_offset_text().set(size=7, color=INK)
    if not horizontal:
        axes.yaxis.set_offset_position("left")  # above the bar, not over the map


def _grey(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the luma (ITU-R BT.709) of an image, `(H, W)`, in the range _DARK to _LIGHT."""
    luma: npt.NDArray[np.float32] = (image @ np.array([0.2126, 0.7152, 0.0722]) / 255).astype(np.float32)
    return _DARK + (_LIGHT - _DARK) * luma


def _heat() -> "ListedColormap":
    """Return colours in which equal steps look equal, with an opacity that grows from 0.

    They are the part of inferno that is not darker than the grey image, so that larger values are lighter.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    share = np.linspace(0, 1, 256)
    colours = colormaps["inferno"](0.35 + 0.65 * share)
    colours[:, 3] = 0.92 * share**0.6
    return ListedColormap(colours, "heat")
