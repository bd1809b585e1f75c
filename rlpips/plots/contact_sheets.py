"""A contact sheet: many pairs of images, the most different first, with where they differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from rlpips.errors import ImageError
from rlpips.metric.lpips import LPIPS
from rlpips.plots.drawing import GREY, check_plot_file, fit_text, new_figure, number, place, write, write_text
from rlpips.plots.heatmaps import draw_map, draw_scale, frame
from rlpips.plots.measured_pairs import Pair, at_rest, default_metric, measure_map, name_of, read_pair
from rlpips.scoring.folders import partners

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# All lengths are in inches.
_TEXT, _WIDTH, _HEIGHT = 1.45, 1.4, 0.95  # the column of names and numbers; the most that an image takes
_NARROW, _LOW = 1.2, 0.42  # the least width of a column, and height of a row, which have place for text
_GAP, _MARGIN, _HEAD, _BREAK, _FOOT = 0.07, 0.1, 0.5, 0.3, 0.5
_SIDE = 600  # pixels of a side that an image keeps


def contact_sheet(
    a: Any,
    b: Any,
    distances: Sequence[float] | None = None,
    *,
    metric: LPIPS | None = None,
    most: int = 10,
    resize: int | tuple[int, int] | None = None,
    tile: int | None = None,
    path: str | PathLike[str] | None = None,
) -> "Figure":
    """Draw pairs of images in the order of their distances, each with the map that `heatmap` draws.

    The largest distance comes first. Of more pairs than are to be shown, those with the largest and those
    with the smallest distances are, half of each. All maps have one scale of colours. Files are called by
    their names, other images by their number, counted from 0.

    Args:
        a: a folder; or images, each as for `rlpips.distance`, in a sequence or a batch.
        b: a folder with files of the same names; or as many images.
        distances: of the pairs of images, if they have been measured; those of folders are measured here.
        metric: as for `heatmap`.
        most: the most pairs that are shown.
        resize: as for `heatmap`.
        tile: as for `heatmap`.
        path: as for `heatmap`.

    Returns:
        The figure. Of the pair that is number k in order, the axes are labelled 'a k', 'b k' and 'map k',
        that of the colour bar 'scale'.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: something is not an image that can be measured, sizes differ, or a file has no partner.
        MissingExtraError: matplotlib is not installed.
        NotADirectoryError: there is no such folder.
        OSError: the figure cannot be written.
        TypeError: something is nothing that holds images.
        ValueError: as from `LPIPS`; there are no pairs, or not as many images or distances of each; `most` is
            not positive; the name of the file ends neither in .png nor in .pdf.
    """
    check_plot_file(path)
    if most < 1:
        raise ValueError(f"most={most} must be at least 1")
    metric = at_rest(metric or default_metric())
    pairs = _pairs(a, b)
    if distances is None:
        distances = [_distance(metric, *pair, resize, tile) for pair in pairs]
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
            measure_map(metric, *pairs[k], resize=resize, tile=tile, side=_SIDE),
        )
        for k in first + last
    ]
    between = [distances[k] for k in order[len(first) : len(order) - len(last)]]
    headings = [
        "distance",
        *(_heading(side, name) for side, name in ((a, "a"), (b, "b"))),
        "local distance",
    ]
    title = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''}, mean distance {number(fmean(distances))}"
    figure = _draw(rows, len(first), between, headings, title)
    if path is not None:
        write(figure, path)
    return figure


def _pairs(a: Any, b: Any) -> list[tuple[Any, Any]]:
    """Return what is to be compared, of two folders or two sequences."""
    if isinstance(a, str | PathLike) and isinstance(b, str | PathLike):
        pairs, alone = partners(Path(a), Path(b))
        if alone:
            raise ImageError("; ".join(f"{path} {problem}" for path, problem in alone[:3]))
    elif isinstance(a, str | PathLike) or isinstance(b, str | PathLike):
        raise TypeError("a and b must be two folders, or two sequences of images")
    elif len(a) != len(b):
        raise ValueError(f"a and b must hold as many images, got {len(a)} and {len(b)}")
    else:
        pairs = list(zip(a, b, strict=True))
    if not pairs:
        raise ValueError("there are no pairs of images to show")
    return pairs


def _distance(metric: LPIPS, a: Any, b: Any, resize: int | tuple[int, int] | None, tile: int | None) -> float:
    with torch.inference_mode():
        return metric(*read_pair(metric, a, b, resize), tile=tile).item()


def _names(k: int, a: Any, b: Any) -> list[str]:
    """Return what to call pair k: the name of its files, or both where they differ."""
    names = [name_of(image, "") for image in (a, b)]
    return list(dict.fromkeys(filter(None, names))) or [f"pair {k}"]


def _heading(images: Any, name: str) -> str:
    """Return what images have in common: their folder, or else the name of the argument."""
    if isinstance(images, str | PathLike):
        return str(images)
    paths = [Path(image) for image in images if isinstance(image, str | PathLike)]
    folders = {path.parent for path in paths}
    return str(folders.pop()) if len(paths) == len(images) and len(folders) == 1 else name


@dataclass(frozen=True)
class _Row:
    """What is shown of a pair."""

    names: list[str]
    distance: float
    pair: Pair

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of its images."""
        height, width = self.pair.map.shape
        scale = min(_WIDTH / width, _HEIGHT / height)
        return scale * width, scale * height


def _draw(
    rows: Sequence[_Row], first: int, between: Sequence[float], headings: Sequence[str], title: str
) -> "Figure":
    """Draw rows, of which those from `first` on come after what is left out `between`."""
    cell = max(_NARROW, *(row.size[0] for row in rows))
    heights = [max(_LOW, row.size[1]) for row in rows]
    left = [_MARGIN, *(_MARGIN + _TEXT + k * (cell + _GAP) for k in range(3))]
    across = left[3] + cell + 2 * _MARGIN
    down = _MARGIN + _HEAD + sum(heights) + _GAP * len(rows) + (_BREAK if between else 0) + _FOOT
    figure = new_figure(across, down)
    write_text(figure, _MARGIN, _MARGIN, title, 9)
    for x, heading, space in zip(left, headings, (_TEXT, cell, cell, cell), strict=True):
        write_text(figure, x, _MARGIN + _HEAD - 0.05, fit_text(heading, space, 7.5), 7.5, va="bottom")
    most = max(float(row.pair.map.max()) for row in rows)
    top = _MARGIN + _HEAD
    for k, (row, height) in enumerate(zip(rows, heights, strict=True)):
        if between and k == first:
            text = f"{len(between)} more between {number(between[0])} and {number(between[-1])}"
            write_text(figure, left[1], top + (_BREAK - _GAP) / 2, text, 7.5, va="center", color=GREY)
            top += _BREAK
        _write_names(figure, row, top, height)
        for x, label in zip(left[1:], ("a", "b", "map"), strict=True):
            axes = place(figure, x, top + (height - row.size[1]) / 2, *row.size, f"{label} {k}")
            frame(axes)
            if label == "map":
                colours = draw_map(axes, row.pair, most)
            else:
                axes.imshow(getattr(row.pair, label))
        top += height + _GAP
    bar = place(figure, left[3], top + 0.03, cell, 0.09, "scale")
    draw_scale(bar, colours, ticks=3, horizontal=True)
    return figure


def _write_names(figure: "Figure", row: _Row, top: float, height: float) -> None:
    """Write the distance of a pair and, below it, its names, beside the middle of its images."""
    lines = [fit_text(name, _TEXT - 0.08, 6.5) for name in row.names]
    start = top + (height - 0.17 - 0.11 * len(lines)) / 2
    write_text(figure, _MARGIN, start, number(row.distance), 9, weight="bold")
    write_text(figure, _MARGIN, start + 0.17, "\n".join(lines), 6.5, color=GREY, linespacing=1.15)
