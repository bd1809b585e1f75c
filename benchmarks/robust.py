"""How robust metrics are, and how they agree with people: the tables of docs/benchmarks.md, by one command.

`python -m benchmarks.robust PHOTOS FOLDER --people HUMAN` makes triplets of photos and distortions that
neither training nor any choice has seen, and lets a panel label them. Then it measures how often each metric
agrees with the labels, attacked and not. With `--people` it also measures agreement with people. Everything
is kept in FOLDER, and the tables are in FOLDER/tables.md. If you interrupt it, the same command continues. It
takes hours, most of them with VGG16; `--weights`, `--others` and `--count` choose less.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import agreement, report
from benchmarks.measured import Folder, Row, table, transposed
from benchmarks.unseen import (
    MOST_VGG,
    OTHER_ATTACKS,
    WHITE_BOX,
    Columns,
    Unseen,
    is_vgg,
    others_of,
    shares,
    under_pgd,
)
from rlpips.system.files import write_atomically

WEIGHTS = ("piq:mse", "piq:ssim", "standard", "rlpips-alex-heads", "robust", "vgg:standard", "vgg:robust")
OTHERS = ("piq:ssim", "standard", "robust")


@dataclass
class Tables:
    """The rows of all tables, by metric."""

    robust: dict[str, Row] = field(default_factory=dict)
    fewer: dict[str, Row] = field(default_factory=dict)
    large: dict[str, Row] = field(default_factory=dict)
    others: dict[str, Row] = field(default_factory=dict)
    masked: dict[str, Row] = field(default_factory=dict)
    people: dict[str, Row] = field(default_factory=dict)
    scale: dict[str, Row] = field(default_factory=dict)

    def add(self, weights: str, unseen: Unseen, human: Path | None, *, others: bool) -> None:
        """Measure a metric, and add its rows."""
        judged: dict[str, Columns] = {}
        for name, (attacks, perturb) in (OTHER_ATTACKS if others else WHITE_BOX).items():
            judged |= unseen.judged(weights, 64, name, attacks, perturb)
        found = shares(judged)
        people = agreement.with_people(unseen.folder, weights, human) if human else {}
        inflation = unseen.inflation(weights, 64)
        shown = agreement.in_short(people)
        self.robust[weights] = under_pgd(found, inflation) | shown | counted(judged)
        self.fewer[weights] = under_pgd(shares(judged, MOST_VGG), {})
        if people:
            self.people[weights] = people
        standard = agreement.standard_of(weights)
        if weights != standard and not weights.startswith("piq:"):
            pairs = [np.concatenate(unseen.judged(each, 64)["natural"][:2]) for each in (weights, standard)]
            self.scale[weights] = agreement.with_lpips(standard, *pairs)
        if others:
            self.others[weights] = counted(judged) | others_of(found)
            large = unseen.judged(weights, 256, "white-box", *WHITE_BOX["white-box"])
            inflation = unseen.inflation(weights, 256)
            self.large[weights] = under_pgd(shares(large), inflation) | counted(large)
            self.masked[weights] = unseen.masked(weights)

    def __str__(self) -> str:
        """Write them as Markdown."""
        written = [table("64 pixels, PGD", self.robust)]
        if any(map(is_vgg, self.robust)):  # for which fewer triplets are measured
            written.append(table(f"the first {MOST_VGG} of these triplets", self.fewer))
        if self.others:
            written.append(table("256 pixels, PGD", self.large))
            written.append(table("64 pixels, other attacks", transposed(self.others)))
            written.append(table("64 pixels, on x0", transposed(self.masked)))
        if self.people:
            written.append(table("people [95 %]", self.people))
        if self.scale:
            written.append(table("distances beside those of LPIPS", self.scale))
        return "\n\n".join(written) + "\n"


def counted(judged: Mapping[str, Columns]) -> Row:
    """Return the number of triplets."""
    return {"triplets": str(len(judged["natural"][0]))}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "photos", type=Path, help="a folder of .jpg files: 700 of ImageNet's and 400 of BSDS500"
    )
    parser.add_argument("folder", type=Path, help="where everything is kept")
    parser.add_argument("--people", type=Path, help="a folder with live_r2_subset and mucped23")
    parser.add_argument("--weights", nargs="+", default=WEIGHTS, help="metrics, as for 'rlpips evaluate'")
    parser.add_argument(
        "--others",
        nargs="*",
        default=OTHERS,
        help="the metrics among them that meet other attacks and larger images, which takes longer",
    )
    parser.add_argument("--count", type=int, default=300, help="triplets (300; with VGG16 at most 100)")
    parser.add_argument("--seed", type=int, default=100, help="seed of the triplets (100)")
    options = parser.parse_args(arguments)
    unseen = Unseen(options.photos, Folder(options.folder), options.count, options.seed)
    tables = Tables()
    for weights in options.weights:
        tables.add(weights, unseen, options.people, others=weights in options.others)
        write_atomically(options.folder / "tables.md", str(tables).encode())  # what is measured so far
    print(f"\n{tables}")
    report.write("robust", [vars(tables)])


if __name__ == "__main__":
    main()
