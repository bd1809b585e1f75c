"""Contact sheets: many pairs of images, the most different first, with maps of where they differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlpips.errors import ImageError
from rlpips.metric.lpips import LPIPS
from rlpips.plots.drawing import (
    GREY,
    check_plot_file,
    fit_text,
    format_distance,
    new_figure,
    place_axes,
    write,
    write_text,
)
from rlpips.plots.heatmaps import draw_map, draw_scale, frame
from rlpips.plots.measured_pairs import (
    MeasuredPair,
    default_metric,
    evaluation_copy,
    image_name,
    measure_map,
    read_pair,
)
from rlpips.scoring.folders import partners
from rlpips.scoring.one_pair import warn_of_unit_range

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# All lengths are in inches.
_TEXT = 1.45  # width of the column of names and distances
_WIDTH, _HEIGHT = 1.4, 0.95  # largest size of an image
_NARROW, _LOW = 1.2, 0.42  # smallest width of a column and height of a row, so that text fits
_GAP, _MARGIN, _HEAD, _BREAK, _FOOT = 0.07, 0.1, 0.5, 0.3, 0.5
_SIDE = 600  # images are shrunk to this many pixels per side


def contact_sheet(
    a: Any,
    b: Any,
    distances: Sequence[float] | None = None,
    *,
    metric: LPIPS | None = None,
    most: int = 10,
    resize: int | tuple[int, int] | None = None,
    tile: int | None = None,
    normalize: bool = False,
    path: str | PathLike[str] | None = None,
) -> "Figure":
    """Draw many pairs of images, the largest distance first, each with a map of where the two differ.

    If there are more than `most` pairs, half of the rows show the largest distances and half the smallest.
    The maps are what `LPIPS(spatial=True)` returns, all on one scale of colours. Files are labelled with
    their names, other images with their position, counted from 0.

    Float tensors are read as [-1, 1]. If all their values lie in [0, 1], there is a warning, unless
    `normalize=True`.

    Args:
        a: a folder; or images in a sequence or a batch. Each is a path, a Pillow image, a NumPy array
            `(H, W)` or `(H, W, C)`, uint8 in [0, 255] or float in [0, 1], or a tensor `(H, W)`, `(C, H, W)`
            or `(1, C, H, W)`, uint8 in [0, 255] or float in [-1, 1]. C is 3 or 1.
        b: a folder with files of the same names; or as many images.
        distances: the distances of the pairs, if they have been measured before.
        metric: the metric, which is not changed. By default the robust metric that ships with the package.
        most: the most pairs that are shown.
        resize: resize all images to this (height, width), or to a square of this side, before measuring.
        tile: for huge images: measure tiles of this side one at a time, which needs less memory.
        normalize: float tensors are in [0, 1] instead of [-1, 1]. Float arrays are always in [0, 1].
        path: a .png file (300 dots per inch) or a .pdf file to write the figure to. If writing fails, no
            partial file is left.

    Returns:
        The figure. The axes of row k are labelled 'a k', 'b k' and 'map k', those of the colour bar 'scale'.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: an image cannot be read or measured, the sizes of a pair differ, or a file has no partner.
        MissingExtraError: matplotlib is not installed.
        NotADirectoryError: there is no such folder.
        OSError: the figure cannot be written.
        TypeError: an image is none of the above, or one of `a` and `b` is a folder and the other is not.
        ValueError: there are no pairs, or the numbers of images or distances differ; images are too small for
            the backbone; `most` or `tile` is not positive; the name of the file does not end in .png or .pdf.
    """
    check_plot_file(path)
    if most < 1:
        raise ValueError(f"most={most} must be at least 1")
    metric = evaluation_copy(metric or default_metric())
    pairs = _pair_up(a, b)
    if distances is None:
        distances = [_distance(metric, *read_pair(metric, *pair, resize, normalize), tile) for pair in pairs]
    if len(distances) != len(pairs):
        raise ValueError(f"there are {len(pairs)} pairs, but {len(distances)} distances")
    order = sorted(range(len(pairs)), key=lambda k: -distances[k])
    first, last = (
        (order, []) if len(order) <= most else (order[: -(-most // 2)], order[len(order) - most // 2 :])
    )
    rows = [
        _Row(
            _names(k, *pairs[k]),
            distances[k],
            measure_map(metric, *pairs[k], resize=resize, tile=tile, normalize=normalize, side=_SIDE),
        )
        for k in first + last
    ]
    warn_of_unit_range(normalize, a=[image for image, _ in pairs], b=[image for _, image in pairs])
    between = [distances[k] for k in order[len(first) : len(order) - len(last)]]
    headings = [
        "distance",
        *(_heading(side, name) for side, name in ((a, "a"), (b, "b"))),
        "local distance",
    ]
    title = (
        f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''}, mean distance {format_distance(fmean(distances))}"
    )
    figure = _draw(rows, len(first), between, headings, title)
    if path is not None:
        write(figure, path)
    return figure


def _pair_up(a: Any, b: Any) -> list[tuple[Any, Any]]:
    """Return the pairs of images of two folders or two sequences."""
    if isinstance(a, str | PathLike) and isinstance(b, str | PathLike):
        pairs, unpaired = partners(Path(a), Path(b))
        if unpaired:
            raise ImageError("; ".join(f"{path} {problem}" for path, problem in unpaired[:3]))
    elif isinstance(a, str | PathLike) or isinstance(b, str | PathLike):
        raise TypeError("a and b must be two folders, or two sequences of images")
    elif len(a) != len(b):
        raise ValueError(f"a and b must hold as many images, got {len(a)} and {len(b)}")
    else:
        pairs = list(zip(a, b, strict=True))
    if not pairs:
        raise ValueError("there are no pairs of images to show")
    return pairs


def _distance(metric: LPIPS, a: Tensor, b: Tensor, tile: int | None) -> float:
    with torch.inference_mode():
        return metric(a, b, tile=tile).item()


def _names(k: int, a: Any, b: Any) -> list[str]:
    """Return the label of pair k: the name of its files, or both names if they differ."""
    names = [image_name(image, "") for image in (a, b)]
    return list(dict.fromkeys(filter(None, names))) or [f"pair {k}"]


def _heading(images: Any, name: str) -> str:
    """Return the heading of a column of images: their common folder, or the name of the argument."""
    if isinstance(images, str | PathLike):
        return str(images)
    paths = [Path(image) for image in images if isinstance(image, str | PathLike)]
    folders = {path.parent for path in paths}
    return str(folders.pop()) if len(paths) == len(images) and len(folders) == 1 else name


@dataclass(frozen=True)
class _Row:
    """What the sheet shows of a pair."""

    names: list[str]
    distance: float
    pair: MeasuredPair

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of its images in inches."""
        height, width = self.pair.map.shape
        scale = min(_WIDTH / width, _HEIGHT / height)
        return scale * width, scale * height


def _draw(
    rows: Sequence[_Row], first: int, between: Sequence[float], headings: Sequence[str], title: str
) -> "Figure":
    """Draw the rows. Before the row `first`, pairs with the distances `between` are left out."""
    cell = max(_NARROW, *(row.size[0] for row in rows))
    heights = [max(_LOW, row.size[1]) for row in rows]
    left = [_MARGIN, *(_MARGIN + _TEXT + k * (cell + _GAP) for k in range(3))]
    across = left[3] + cell + 2 * _MARGIN
    down = _MARGIN + _HEAD + sum(heights) + _GAP * len(rows) + (_BREAK if between else 0) + _FOOT
    figure = new_figure(across, down)
    write_text(figure, _MARGIN, _MARGIN, title, 9)
    for x, heading, space in zip(left, headings, (_TEXT, cell, cell, cell), strict=True):
        write_text(figure, x, _MARGIN + _HEAD - 0.05, fit_text(heading, space, 7.5), 7.5, va="bottom")
    largest = max(float(row.pair.map.max()) for row in rows)
    top = _MARGIN + _HEAD
    for k, (row, height) in enumerate(zip(rows, heights, strict=True)):
        if between and k == first:
            largest_left, smallest_left = format_distance(between[0]), format_distance(between[-1])
            text = f"{len(between)} more between {largest_left} and {smallest_left}"
            write_text(figure, left[1], top + (_BREAK - _GAP) / 2, text, 7.5, va="center", color=GREY)
            top += _BREAK
        _write_names(figure, row, top, height)
        for x, label in zip(left[1:], ("a", "b", "map"), strict=True):
            axes = place_axes(figure, x, top + (height - row.size[1]) / 2, *row.size, f"{label} {k}")
            frame(axes)
            if label == "map":
                colours = draw_map(axes, row.pair, largest)
            else:
                axes.imshow(getattr(row.pair, label))
        top += height + _GAP
    bar = place_axes(figure, left[3], top + 0.03, cell, 0.09, "scale")
    draw_scale(bar, colours, ticks=3, horizontal=True)
    return figure


def _write_names(figure: "Figure", row: _Row, top: float, height: float) -> None:
    """Write the distance of a pair and its names below, level with the middle of its images."""
    lines = [fit_text(name, _TEXT - 0.08, 6.5) for name in row.names]
    start = top + (height - 0.17 - 0.11 * len(lines)) / 2
    write_text(figure, _MARGIN, start, format_distance(row.distance), 9, weight="bold")
    write_text(figure, _MARGIN, start + 0.17, "\n".join(lines), 6.5, color=GREY, linespacing=1.15)
