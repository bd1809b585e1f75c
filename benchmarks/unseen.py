"""Metrics on triplets and photos that neither training nor any choice has seen, attacked and not."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

import rlpips
from benchmarks import masking
from benchmarks.agreement import standard_of
from benchmarks.measured import Folder, Row, run
from rlpips.attacks.parse import parse_attacks
from rlpips.cli.metrics import load_metric
from rlpips.evaluation.scores import accuracy
from rlpips.system.files import write_atomically

# Training saw none of these. Those that it did not see either, but that were used to choose, are left out.
UNSEEN = (
    *("webp", "colour-cast", "quantisation"),
    *("motion-blur+webp", "gamma+quantisation", "saturation+bilinear"),
)
PGD = "linf:4/255,8/255:30x2"
WHITE_BOX = {"white-box": ((PGD,), ("x0", "x1", "ref"))}
# Attacks with one of PGD's budgets run in one command with it, so that the report has the worst of them for
# each triplet. SSA does not attack ref.
OTHER_ATTACKS = {
    "linf-on-x0-x1": ((PGD, "apgd-linf:4/255:30", "ssa:4/255:30"), ("x0", "x1")),
    "linf-on-ref": ((PGD, "apgd-linf:4/255:30"), ("ref",)),
    "l2-and-stadv": (("l2:1:30", "stadv:0.25:30", "stadv:0.5:30", "stadv:1:30"), ("x0", "ref")),
}
FEW = 60  # triplets of 256 pixels, photos for inflation, triplets for `benchmarks.masking`
MOST_VGG = 100
BATCH = {64: 50, 256: 10}

Columns = list[npt.NDArray[np.float64]]  # d0, d1 and judge of triplets


class Unseen:
    """The photos and the triplets, and what was measured on them."""

    def __init__(self, photos: Path, folder: Folder, count: int, seed: int) -> None:
        self.folder = folder
        self.count = count
        self.photos = folder.path / "final-photos"
        self.triplets = folder.path / "triplets"
        self.photos.mkdir(exist_ok=True)
        for photo in sorted(photos.glob("*.jpg"))[::5][1::2]:  # of every fifth, the others helped to choose
            shutil.copy(photo, self.photos)
        self.large_photos = folder.path / "final-photos-256"
        self.large_photos.mkdir(exist_ok=True)
        for photo in self.photos.iterdir():
            with Image.open(photo) as image:
                if min(image.size) >= 256:
                    shutil.copy(photo, self.large_photos)
        for size, wanted, draw in ((64, count, seed), (256, min(count, FEW), seed + 1)):
            options = ("--count", wanted, "--size", size, "--seed", draw, "--subset", f"px{size}")
            run(
                *("triplets", self.photos, self.triplets, *options),
                *("--labels", "panel", "--distortions", *UNSEEN),
            )

    def judged(
        self,
        weights: str,
        size: int,
        name: str = "natural",
        attacks: Sequence[str] = (),
        perturb: Sequence[str] = (),
    ) -> dict[str, Columns]:
        """Return a metric's distances, and the labels, by attack and what it perturbs."""
        most = FEW if size == 256 else MOST_VGG if attacks and is_vgg(weights) else self.count
        count = min(most, self.count)
        data: list[object] = ["--data", self.triplets, "--subsets", f"val/px{size}", "--limit", count]
        if attacks:
            data += ["--batch-size", BATCH[size], "--attack", *attacks, "--perturb", *perturb]
        document = self.folder.evaluated(f"{name}-{size}-{count}", weights, "2afc", *data)
        return {
            f"{record['attack']} {record['perturb']}".replace("none -", "natural"): [
                np.array(record[column]) for column in ("d0", "d1", "judge")
            ]
            for record in document["results"]
        }

    def inflation(self, weights: str, size: int) -> dict[str, float]:
        """Return, by attack, how far attacks push photos from themselves, over visible distortions."""
        photos = self.large_photos if size == 256 else self.photos
        count = min(self.count, FEW)
        options: list[object] = ["--images", photos, "--size", size, "--limit", count, "--attack", PGD]
        options += ["--batch-size", BATCH[size]]
        found = self.folder.evaluated(f"inflation-{size}-{count}", weights, "robustness", *options)
        return {each["attack"]: each["inflation"] for each in found["attacked"]}

    def masked(self, weights: str) -> Row:
        """Return what `benchmarks.masking` finds, with x0 attacked."""
        dataset = rlpips.TwoAFC(self.triplets, "val/px64")
        count = min(self.count, FEW)
        output = self.folder.report_file(f"masking-{count}", weights)
        if not output.exists():
            items = [dataset[i] for i in range(count)]
            keys = ("ref", "p0", "p1", "judge")
            ref, x0, x1, judge = (torch.stack([item[key] for item in items]) for key in keys)
            metric, standard = (load_metric(each, torch.device("cpu")) for each in (weights, "standard"))
            found = masking.measure(metric, standard, (ref, x0, x1, judge), "x0")
            write_atomically(output, json.dumps(found, indent=1).encode())
        return {"triplets": str(count), **json.loads(output.read_text())}


def is_vgg(weights: str) -> bool:
    """Tell whether a metric uses VGG16."""
    return standard_of(weights).startswith("vgg")


def budget(attack: str) -> str:
    """Return the budget of an attack: 4/255 of linf:4/255:30x2."""
    return attack.split(":")[1]


def shares(judged: Mapping[str, Columns], limit: int | None = None) -> dict[str, float]:
    """Return the share of triplets judged right by case, of all or of the first `limit` of them."""
    return {
        case: float(np.mean(accuracy(*(column[:limit] for column in columns))))
        for case, columns in judged.items()
    }


def others_of(found: Mapping[str, float]) -> Row:
    """Choose what is not in the main table: natural, and attacks other than PGD."""
    return {case: share for case, share in found.items() if case.partition(" ")[0] not in parse_attacks(PGD)}


def under_pgd(found: Mapping[str, float], inflation: Mapping[str, float]) -> Row:
    """Choose the columns of the main table: natural, and for each budget of PGD x0, x1, ref and inflation."""
    row: Row = {"natural": found["natural"]}
    for attack in parse_attacks(PGD):
        row |= {f"{budget(attack)}: {x}": found[f"{attack} {x}"] for x in ("x0", "x1", "ref")}
        if inflation:
            row[f"inflation {budget(attack)}"] = inflation[attack]
    return row
