"""What all figures share: files, sizes in inches, colours and text.

Figures use matplotlib's objects directly. They open no window and do not touch the global state of pyplot.
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
# Colours that people with any colour vision can tell apart (Okabe & Ito 2008), in order of use.
BLUE, COLOURS = "#0072B2", ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def check_plot_file(path: str | PathLike[str] | None) -> None:
    """Check that a figure can be drawn, and written to this file if there is one, before any work is done.

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
    """Make an empty figure of this size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from rlpips.plots.notebook_figure import NotebookFigure

    figure = NotebookFigure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def write(figure: "Figure", path: str | PathLike[str]) -> None:
    """Write a figure to a .png file (300 dots per inch) or a .pdf file.

    If writing fails, no partial file is left.

    Raises:
        OSError: the file cannot be written.
    """
    file = io.BytesIO()
    kind = Path(path).suffix.lower()[1:]
    # A PDF without a date, so that equal figures give equal files.
    metadata = {"CreationDate": None} if kind == "pdf" else {}
    figure.savefig(file, format=kind, dpi=300, metadata=metadata)
    write_atomically(Path(path), file.getvalue())


def place_axes(figure: "Figure", left: float, top: float, width: float, height: float, label: str) -> "Axes":
    """Add axes. Their place is given in inches from the left and upper sides of the figure."""
    across, down = figure.get_size_inches()
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axes.set_label(label)
    return axes


def write_text(figure: "Figure", left: float, top: float, text: str, size: float, **style: Any) -> "Text":
    """Add text. Its place is given in inches from the left and upper sides of the figure.

    By default the place is the upper left corner of the text. `ha` and `va` choose another.
    """
    across, down = figure.get_size_inches()
    style = {"va": "top", "color": INK, **style}
    text = text.encode(errors="backslashreplace").decode()  # a file's name may be no valid text
    # Names may hold dollar signs, which must not start a formula.
    return figure.text(left / across, 1 - top / down, text, fontsize=size, parse_math=False, **style)


def fit_text(text: str, inches: float, size: float) -> str:
    """Shorten a text, such as a path, to this width. Its end is kept."""
    length = max(4, int(inches * 72 / (0.62 * size)))
    return text if len(text) <= length else f"…{text[1 - length :]}"


def format_distance(distance: float) -> str:
    """Write a distance for people. Only a distance of exactly 0 is written as 0."""
    if distance == 0:
        return "0"
    return f"{distance:.4f}" if abs(distance) >= 0.001 else f"{distance:.1e}"
