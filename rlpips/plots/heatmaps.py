"""The picture of a distance: two images and, over the first of them, where they differ."""

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rlpips.metric.lpips import LPIPS
from rlpips.plots.drawing import INK, check_plot_file, fit_text, new_figure, number, place, write, write_text
from rlpips.plots.measured_pairs import Pair, at_rest, default_metric, measure_map, name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

# All lengths are in inches.
_WIDTH, _HEIGHT = 2.0, 3.0  # the most that an image takes, beside others
_WIDE, _LONG = 2.4, 5.2  # images wider than this many times their height lie below each other, this wide
_NARROW, _LOW = 1.2, 0.7  # the least width below a title, and height of a colour bar
_TITLE, _GAP, _MARGIN = 0.24, 0.12, 0.08
_BAR, _TICKS = 0.1, 0.62

_DARK, _LIGHT = 0.1, 0.62  # black and white of an image below its map, which keeps the brightest for itself


def heatmap(
    a: Any,
    b: Any,
    *,
    metric: LPIPS | None = None,
    resize: int | tuple[int, int] | None = None,
    tile: int | None = None,
    path: str | PathLike[str] | None = None,
) -> "Figure":
    """Draw two images and, over the first of them in grey, where a metric finds them to differ.

    The map is that of `LPIPS(spatial=True)`. Its colours begin at 0, where the image shows through, and end
    at its largest value. The number over it is the distance of the two images.

    Args:
        a: an image as for `rlpips.distance`: a path, a Pillow image, an array or a tensor.
        b: another, of the same size.
        metric: what measures; it stays as it is. By default the robust metric that ships.
        resize: bring both to this (height, width), or to a square of this side, before measuring.
        tile: for huge images, run tiles of this side one at a time, as in `LPIPS.forward`.
        path: a file ending in .png (300 dots per inch) or .pdf, written whole or not at all.

    Returns:
        The figure, with axes labelled 'a', 'b', 'map' and 'scale'. The last image of 'map' holds the local
        distances, `(H, W)`.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: something is not one image that can be measured, or the sizes differ.
        MissingExtraError: matplotlib is not installed.
        OSError: the figure cannot be written.
        TypeError: an argument is nothing that holds an image.
        ValueError: as from `LPIPS`; the name of the file ends neither in .png nor in .pdf.
    """
    check_plot_file(path)
    pair = measure_map(at_rest(metric or default_metric()), a, b, resize=resize, tile=tile)
    figure = _draw(pair, name_of(a, "a"), name_of(b, "b"))
    if path is not None:
        write(figure, path)
    return figure


def _draw(pair: Pair, name_a: str, name_b: str) -> "Figure":
    """Draw images and map side by side, or wide ones below each other, and the colour bar beside the map."""
    height, width = pair.map.shape
    stacked = width > _WIDE * height
    scale = _LONG / width if stacked else min(_WIDTH / width, _HEIGHT / height)
    across, down = scale * width, scale * height
    bar = max(down, _LOW)
    aside = (
        max(0.0, _NARROW - across) / 2
    )  # what is left free on either side of a narrow image, for its title
    step = (0.0, _TITLE + down + _GAP) if stacked else (across + 2 * aside + _GAP, 0.0)
    left, top = _MARGIN + aside, _MARGIN + _TITLE
    figure = new_figure(
        left + 2 * step[0] + across + aside + _GAP + _BAR + _TICKS + _MARGIN,
        top + 2 * step[1] + bar + _MARGIN,
    )
    titles = {"a": name_a, "b": name_b, "map": f"distance {number(pair.distance)}"}
    for k, (label, title) in enumerate(titles.items()):
        x, y = left + k * step[0], top + k * step[1]
        axes = place(figure, x, y, across, down, label)
        frame(axes)
        if label == "map":
            colours = draw_map(axes, pair, float(pair.map.max()))
        else:
            axes.imshow(getattr(pair, label))
        text = fit_text(title, across + 2 * aside, 8)
        write_text(figure, x + across / 2, y - 0.06, text, 8, ha="center", va="bottom")
    axes = place(figure, x + across + aside + _GAP, y, _BAR, bar, "scale")
    draw_scale(axes, colours, ticks=min(6, round(2.5 * bar)))
    return figure


def frame(axes: "Axes") -> None:
    """Give an image a thin frame and no ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=INK, linewidth=0.4)


def draw_map(axes: "Axes", pair: Pair, most: float) -> "ScalarMappable":
    """Draw local distances over the first image, in colours from 0 to `most`."""
    from matplotlib.colors import Normalize

    axes.imshow(_grey(pair.a), cmap="gray", vmin=0, vmax=1)
    # Equal images have no largest distance; theirs is a scale like any other.
    norm = Normalize(0, most if most > 0 else 1)
    return axes.imshow(pair.map, cmap=_heat(), norm=norm)


def draw_scale(axes: "Axes", colours: "ScalarMappable", *, ticks: int, horizontal: bool = False) -> None:
    """Draw the colour bar of maps into an axes of its own, as the colours look over the image."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    numbers = ScalarFormatter(useMathText=True)
    numbers.set_powerlimits((-2, 4))  # of small distances the power of ten stands at the end of the bar, once
    bar = axes.figure.colorbar(
        colours,
        cax=axes,
        orientation="horizontal" if horizontal else "vertical",
        ticks=MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]),
        format=numbers,
    )
    axes.set_facecolor(str((_DARK + _LIGHT) / 2))
    assert bar.solids is not None
    bar.solids.set_rasterized(True)  # many small translucent patches would show their seams
    bar.outline.set(edgecolor=INK, linewidth=0.4)
    axes.tick_params(labelsize=7, length=2, width=0.4, pad=2, colors=INK)
    bar.set_label(
        "local distance", loc="left" if horizontal else "center", fontsize=7.5, color=INK, labelpad=3
    )
    bar.long_axis.get_offset_text().set(size=7, color=INK)
    if not horizontal:
        axes.yaxis.set_offset_position("left")  # begins above the bar and does not reach over the map


def _grey(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the luma (ITU-R BT.709) of an image, `(H, W)`, in the range that is left to it."""
    luma: npt.NDArray[np.float32] = (image @ np.array([0.2126, 0.7152, 0.0722]) / 255).astype(np.float32)
    return _DARK + (_LIGHT - _DARK) * luma


def _heat() -> "ListedColormap":
    """Return colours of which equal steps look equal, with an opacity that grows from 0.

    Those of inferno that are no darker than a grey image, so that lightness grows with the value, too.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    share = np.linspace(0, 1, 256)
    colours = colormaps["inferno"](0.35 + 0.65 * share)
    colours[:, 3] = 0.92 * share**0.6
    return ListedColormap(colours, "heat")
