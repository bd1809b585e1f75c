"""Human judgements in CSV tables, which name images anywhere on disk.

A table begins with the names of its columns. Their order is free, and other columns are ignored. Paths are
relative to the table's folder.

    ref, dist, score     a reference, a distorted version of it, and the score that people gave
    ref, a, b, votes     a reference, two distorted versions of it, and the share of people who chose b
    group, type          optional in both: what intervals resample (by default the reference); the distortion

The table of NIGHTS (Fu et al. 2023, arXiv 2306.09344) is read as it is: its `data.csv` has other names for
the columns of forced choices.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from rlpips.errors import DatasetError, ImageError, printable
from rlpips.images import to_tensor

HigherIs = Literal["better", "worse"]

EVERYTHING = "all"  # the type of all rows, in a table without types
_SCORES: dict[str, HigherIs | None] = {"score": None, "mos": "better", "dmos": "worse"}
_NIGHTS = {  # our names of its columns
    **{"ref_path": "ref", "left_path": "a", "right_path": "b", "right_vote": "votes"},
    **{"split": "type", "votes": "people"},
}
_NIGHTS_PEOPLE = 6  # who must have agreed on a triplet; its authors leave out the others, too
_FEWEST = 3  # pairs; two always correlate perfectly


@dataclass(frozen=True)
class _Row:
    """One judgement: its line in the file, its images by column, a number, and what it is counted with."""

    line: int
    images: dict[str, Path]
    value: float
    group: str
    type: str


class _Table(Dataset[dict[str, Any]]):
    """What `MOS` and `TwoAFCTable` share: they read the table at once and the images when they are asked for.

    Attributes:
        images: for each column of images, its name in an item.
    """

    images: ClassVar[Mapping[str, str]]

    def __init__(self, path: str | PathLike[str], number: Sequence[str]) -> None:
        self.path = Path(path)
        self.number, self._rows = _read_rows(self.path, list(self.images), number)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {len(self)} examples)"

    def group_of(self, index: int) -> str:
        """Return the group of an example, which intervals resample as a whole."""
        return self._rows[index].group

    def name_of(self, index: int) -> str:
        """Return an example's name: its type, and its line in the table."""
        row = self._rows[index]
        return f"{row.type}/line-{row.line}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        row = self._rows[index]
        item: dict[str, Any] = {}
        for column, name in self.images.items():
            try:
                item[name] = to_tensor(row.images[column])[0][0]
            except ImageError as error:
                raise ImageError(f"{self.path}, line {row.line}: {error}") from error
        shapes = {column: tuple(item[name].shape[1:]) for column, name in self.images.items()}
        if len(set(shapes.values())) > 1:
            found = ", ".join(f"{column} {height} x {width}" for column, (height, width) in shapes.items())
            raise DatasetError(
                f"{self.path}, line {row.line}: the images differ in size: {found} pixels (height x width)"
            )
        return {**item, "index": index}


class MOS(_Table):
    """Scores that people gave to distorted versions of references (mean opinion scores), in a CSV table.

    The table has the columns `ref`, `dist` and one of `mos` (higher is better), `dmos` (higher is worse) and
    `score`; optionally `group` (by default the reference) and `type`. Paths are relative to the table's
    folder. An item is a dict of `ref` and `dist`, float32 `(3, H, W)` in [-1, 1]; `score`, the number in the
    table; and `index`, the item's position. The table is read at once. Images are read when an item is taken.

    Args:
        path: the table.
        higher_is: 'better' or 'worse': what a higher score means. None takes it from the column's name, which
            must then be `mos` or `dmos`.

    Attributes:
        path: the table, a `Path`.
        higher_is: what a higher score means.
        scores: the table's scores, `(N,)`, float64.
        worse: the scores, negated if higher is better: `(N,)`, higher is worse.
        types: the type of each pair; 'all' without a column `type`.
        groups: the group of each pair.

    Raises:
        DatasetError: the table lacks a column or a file, or holds a score that is not a finite number, fewer
            than 3 pairs, or only equal scores. Taking an item raises it for images that differ in size.
        ImageError: on taking an item, a file is not an image, or is damaged.
        OSError: the system cannot read a file.
        ValueError: the column is `score`, and `higher_is` is None; or it is neither of the two words.
    """

    images = {"ref": "ref", "dist": "dist"}  # noqa: RUF012 (declared in the base)

    def __init__(self, path: str | PathLike[str], higher_is: HigherIs | None = None) -> None:
        if higher_is not in (None, "better", "worse"):
            raise ValueError(f"higher_is={higher_is!r} is unknown; choose 'better' or 'worse'")
        super().__init__(path, list(_SCORES))
        meaning = higher_is or _SCORES[self.number]
        if meaning is None:
            raise ValueError(
                f"{self.path}: is a higher score better or worse? Say --higher-is (in Python higher_is), or "
                "name the column mos (better) or dmos (worse)"
            )
        self.higher_is: HigherIs = meaning
        self.scores: npt.NDArray[np.float64] = np.array([row.value for row in self._rows])
        self.worse = -self.scores if meaning == "better" else self.scores
        self.types = tuple(row.type for row in self._rows)
        self.groups = tuple(row.group for row in self._rows)
        if len(self) < _FEWEST:
            raise DatasetError(f"{self.path}: a correlation needs at least {_FEWEST} pairs, got {len(self)}")
        if np.ptp(self.scores) == 0:
            raise DatasetError(
                f"{self.path}: every score is {self.scores[0]:g}; nothing correlates with that"
            )

    def files_of(self, index: int) -> dict[str, Path]:
        """Return the files of a pair, by column."""
        return self._rows[index].images

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "score": self._rows[index].value}


class TwoAFCTable(_Table):
    """Forced choices in a CSV table: which of two distorted images is more similar to the reference?

    The table has the columns `ref`, `a`, `b` and `votes`, the share of people who chose `b`; optionally
    `group` (by default the reference) and `type`. An example may stand on several lines, with single answers
    0 and 1. Paths are relative to the table's folder. Items are those of `TwoAFC`: `ref`, `p0` (a) and `p1`
    (b), float32 `(3, H, W)` in [-1, 1]; `judge`, float32 `(1, 1, 1)`, the share; and `index`. Types are the
    subsets. Of NIGHTS' own table the splits are the types, and triplets with fewer than 6 votes are left out.
    The table is read at once. Images are read when an item is taken.

    Args:
        path: the table.
        subsets: types; None takes the whole table.

    Attributes:
        path: the table, a `Path`.
        subsets: the types of the items; 'all' without a column `type`.

    Raises:
        DatasetError: the table is empty, lacks a column or a file, or a share is not in [0, 1]. Taking an
            item raises it for images that differ in size.
        ImageError: on taking an item, a file is not an image, or is damaged.
        OSError: the system cannot read a file.
        ValueError: the table has no such type.
    """

    images = {"ref": "ref", "a": "p0", "b": "p1"}  # noqa: RUF012 (declared in the base)

    def __init__(self, path: str | PathLike[str], subsets: str | Sequence[str] | None = None) -> None:
        super().__init__(path, ["votes"])
        for row in self._rows:
            if not 0 <= row.value <= 1:
                raise DatasetError(
                    f"{self.path}, line {row.line}: votes is the share of people who chose b, in [0, 1]; "
                    f"got {row.value:g}"
                )
        types = dict.fromkeys(row.type for row in self._rows)
        chosen = dict.fromkeys(
            [subsets] if isinstance(subsets, str) else types if subsets is None else subsets
        )
        for name in chosen:
            if name not in types:
                raise ValueError(
                    f"{self.path} has no type {name!r}; its types are {', '.join(map(printable, types))}"
                )
        self.subsets = tuple(chosen)
        self._rows = [row for name in chosen for row in self._rows if row.type == name]

    def subset_of(self, index: int) -> str:
        """Return the type of an example."""
        return self._rows[index].type

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "judge": torch.full((1, 1, 1), self._rows[index].value)}


def _read_rows(path: Path, images: Sequence[str], number: Sequence[str]) -> tuple[str, list[_Row]]:
    """Read and check a table; return which of the possible columns holds the number, and the rows."""
    lines = _from_nights(_read_lines(path))
    header = [name.strip() for name in lines[0][1]]
    held = [name for name in number if name in header]
    lacking = [name for name in images if name not in header]
    if not held:
        lacking.append(" or ".join(number))
    shown = printable(", ".join(header)) or "nothing"
    if lacking:
        raise DatasetError(f"{path}: has no column {', '.join(lacking)}; its first line is: {shown}")
    if len(held) > 1 or any(header.count(name) > 1 for name in (*images, *held, "group", "type")):
        raise DatasetError(f"{path}: holds a column twice, or several of {', '.join(number)}: {shown}")
    rows = []
    for line, cells in lines[1:]:
        where = f"{path}, line {line}"
        if len(cells) != len(header):
            raise DatasetError(f"{where}: must have {len(header)} cells, as the first line, got {len(cells)}")
        row = dict(zip(header, map(str.strip, cells), strict=True))
        for name in (*images, *({"group", "type"} & row.keys())):
            if not row[name]:
                raise DatasetError(f"{where}: {name} is empty")
        files = {name: path.parent / row[name] for name in images}
        for file in files.values():
            if not file.is_file():
                raise DatasetError(f"{where}: there is no file {printable(str(file), 1000)}")
        value = _finite(row[held[0]])
        if value is None:
            raise DatasetError(f"{where}: {held[0]} must be a number, got {printable(row[held[0]])!r}")
        rows.append(_Row(line, files, value, row.get("group", row["ref"]), row.get("type", EVERYTHING)))
    if not rows:
        raise DatasetError(f"{path}: has no line below the names of the columns")
    return held[0], rows


def _read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return the lines of a CSV file that are not empty, with their numbers."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except FileNotFoundError:
        raise DatasetError(f"{path}: there is no such table") from None
    except IsADirectoryError:
        raise DatasetError(f"{path}: is a folder, not a table") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: not a CSV table in UTF-8 ({printable(str(error))})") from error
    if not lines:
        raise DatasetError(f"{path}: the table is empty")
    return lines


def _from_nights(lines: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Give the columns of NIGHTS our names, and leave out the triplets on which too few people agreed."""
    header = [name.strip() for name in lines[0][1]]
    if not _NIGHTS.keys() <= set(header):
        return lines
    people = header.index("votes")
    kept = [
        (line, cells)
        for line, cells in lines[1:]
        if len(cells) != len(header) or (_finite(cells[people]) or 0) >= _NIGHTS_PEOPLE
    ]
    return [(lines[0][0], [_NIGHTS.get(name, name) for name in header]), *kept]


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
