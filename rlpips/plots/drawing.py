"""What all figures share: the files they become, sizes in inches, colours and text.

They are drawn with matplotlib's objects alone: no window and no global state of pyplot.
"""

import io
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpips.errors import MissingExtraError
from rlpips.system.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

INK, GREY = "#222222", "#6f6f6f"
# Colours that people of any colour vision tell apart (Okabe & Ito 2008); series take theirs in this order.
BLUE, COLOURS = "#0072B2", ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def check_plot_file(path: str | PathLike[str] | None) -> None:
    """Check, before the work, that a figure can be drawn, and written to a file of this name if there is one.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: the name ends neither in .png nor in .pdf.
    """
    if path is not None and Path(path).suffix.lower() not in (".png", ".pdf"):
        raise ValueError(f"{path}: a figure is written as .png or .pdf")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("drawing a figure", "plot") from error


def new_figure(width: float, height: float, **options: Any) -> "Figure":
    """Make an empty figure of a size in inches, which a notebook shows as a cell's last value."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from rlpips.plots.shown import ShownFigure

    figure = ShownFigure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def write(figure: "Figure", path: str | PathLike[str]) -> None:
    """Write a figure to a file ending in .png (300 dots per inch) or .pdf, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    file = io.BytesIO()
    kind = Path(path).suffix.lower()[1:]
    # Without a date, equal figures give equal files.
    metadata = {"CreationDate": None} if kind == "pdf" else {}
    figure.savefig(file, format=kind, dpi=300, metadata=metadata)
    write_atomically(Path(path), file.getvalue())


def place(figure: "Figure", left: float, top: float, width: float, height: float, label: str) -> "Axes":
    """Add an axes, placed in inches from the figure's left and upper sides."""
    across, down = figure.get_size_inches()
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axes.set_label(label)
    return axes


def write_text(figure: "Figure", left: float, top: float, text: str, size: float, **style: Any) -> "Text":
    """Add text, which starts (or as `ha` and `va` say) at a place in inches from the left and upper sides."""
    across, down = figure.get_size_inches()
    style = {"va": "top", "color": INK, **style}
    text = text.encode(errors="backslashreplace").decode()  # the name of a file may be no text
    # Nor is it a formula, whatever signs are in it.
    return figure.text(left / across, 1 - top / down, text, fontsize=size, parse_math=False, **style)


def fit_text(text: str, inches: float, size: float) -> str:
    """Keep the end of a text, such as a path, that is wider than there is place for."""
    most = max(4, int(inches * 72 / (0.62 * size)))
    return text if len(text) <= most else f"…{text[1 - most :]}"


def number(distance: float) -> str:
    """Write a distance for people: 0 of equal images alone."""
    if distance == 0:
        return "0"
    return f"{distance:.4f}" if abs(distance) >= 0.001 else f"{distance:.1e}"
