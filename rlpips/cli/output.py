"""What commands write: problems on stderr, tables on stdout, and files."""

import json
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpips.errors import printable

if TYPE_CHECKING:
    from rlpips.evaluation.scores import Score

UNDEFINED = "not defined"  # in tables; null in JSON


def tell(problem: object, about: str = "") -> None:
    """Print a problem to stderr on one line, after what it is about unless it already begins with that."""
    text = str(problem)
    text = text if text.startswith(about) else f"{about} {text}"
    line = " ".join(part.strip() for part in text.splitlines())
    with suppress(OSError):  # the work goes on if stderr cannot be written
        print(f"rlpips: {printable(line, 2000)}", file=sys.stderr)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, with columns aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def score_cell(score: "Score") -> str:
    """Write a score for a table, with its interval if there is one."""
    if math.isnan(score.value):
        return UNDEFINED
    return f"{score.value:.3f}" + ("" if math.isnan(score.low) else f" [{score.low:.3f}, {score.high:.3f}]")


def write_output(path: Path, text: str) -> None:
    """Write a file completely, or leave it as it was.

    Raises:
        OSError: it cannot be written; the message names it.
    """
    from rlpips.system.files import write_atomically

    try:
        # File names may hold bytes that are not text.
        write_atomically(path, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a report as strict JSON, with null for numbers that are not finite."""
    from rlpips.evaluation.report_json import finite_or_none

    write_output(path, json.dumps(finite_or_none(document), indent=1, allow_nan=False) + "\n")
