"""Make a table of forced choices of mucped23's answers: `python tools/mucped23_table.py MUCPED23 TABLE`.

MUCPED23 is the folder with `answers.csv`, `refs` and `jpeg` (in `../shared/human/mucped23`). TABLE is the CSV
file to write, anywhere: its paths lead from its own folder to the images. It has a line for each answer, with
votes 0 or 1, and the reference as group. `rlpips evaluate 2afc --data TABLE` reads it.
"""

import argparse
import csv
import io
import os
from pathlib import Path

from rlpips.system.files import write_atomically


def forced_choices(folder: Path, table: Path) -> list[list[str]]:
    """Return the lines of the table, the names of the columns first."""
    images = Path(os.path.relpath(folder.resolve(), table.resolve().parent))
    lines = [["ref", "a", "b", "votes", "group"]]
    with (folder / "answers.csv").open(encoding="utf-8", newline="") as file:
        for answer in csv.DictReader(file):
            ref = answer["ref"]
            jpegs = [(images / "jpeg" / answer[side] / f"{ref}.jpg").as_posix() for side in ("a", "b")]
            votes = {"a": "0", "b": "1"}[answer["closer"]]
            lines.append([(images / "refs" / f"{ref}.webp").as_posix(), *jpegs, votes, ref])
    return lines


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mucped23", type=Path, metavar="MUCPED23")
    parser.add_argument("table", type=Path, metavar="TABLE")
    options = parser.parse_args()
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(forced_choices(options.mucped23, options.table))
    write_atomically(options.table, text.getvalue().encode())


if __name__ == "__main__":
    main()
