"""How robust metrics are: the tables of docs/benchmarks.md, by one command.

`python -m benchmarks.robust PHOTOS FOLDER` keeps every fifth photo, as in weights/README.md. It makes
triplets of them with distortions that the training of the robust metric never saw, and lets a panel label
them. Then it measures how often each metric agrees with the labels. Everything is kept in FOLDER. If you
interrupt it, the same command continues. It takes hours, most of them with VGG16; `--weights` and
`--count` choose less.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import rlpips
from benchmarks import masking, report
from rlpips.cli import main as run_command_line
from rlpips.system.files import write_atomically

UNSEEN = (
    *("salt-and-pepper", "motion-blur", "webp", "bilinear", "colour-cast", "gamma", "quantisation"),
    *("motion-blur+webp", "saturation+bilinear", "colour-cast+jpeg", "gamma+quantisation"),
)
WEIGHTS = ("standard", "rlpips-alex-heads", "robust", "vgg:standard", "vgg:robust")
WHITE_BOX = "linf:4/255:30x2"
OTHERS = {  # attacks that no metric here was trained with, and what they perturb
    "ssa:4/255:30": ("x0", "x1"),
    **dict.fromkeys(
        ("apgd-linf:4/255:30", "l2:1:30", "stadv:0.25:30", "stadv:0.5:30", "stadv:1:30"), ("x0", "ref")
    ),
}
BATCH = 50


class Benchmark:
    """The folder, and the measurements in it, each made once."""

    def __init__(self, photos: Path, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count
        self.photos = folder / "photos"
        self.photos.mkdir(parents=True, exist_ok=True)
        for photo in sorted(photos.glob("*.jpg"))[::5]:
            shutil.copy(photo, self.photos)

    def triplets(self, size: int, count: int) -> Path:
        """Render triplets, where they are not there."""
        data = self.folder / f"triplets-{size}-{count}"
        options = ["--count", count, "--size", size, "--seed", 78, "--labels", "panel"]
        run("triplets", self.photos, data, *options, "--distortions", *UNSEEN)
        return data

    def judged(self, name: str, weights: str, data: Path, count: int, *options: object) -> dict[str, float]:
        """Return the accuracy of a metric on triplets, by attack and what it perturbs."""
        document = self._evaluated(
            f"{name}-{count}", weights, "2afc", "--data", data, "--limit", count, *options
        )
        return {
            f"{row['attack']} {row['perturb']}".replace("none -", "natural"): row["accuracy"]["value"]
            for row in document["results"]
        }

    def inflation(self, weights: str) -> float:
        """Return how far attacks push photos from themselves, over visible distortions."""
        count = min(self.count, 60)
        document = self._evaluated(
            f"inflation-{count}",
            weights,
            "robustness",
            "--images",
            self.photos,
            "--limit",
            count,
            "--attack",
            WHITE_BOX,
        )
        return float(document["attacked"][0]["inflation"])

    def _evaluated(self, name: str, weights: str, *command: object) -> dict[str, Any]:
        output = self.folder / f"{name}-{weights.replace(':', '-')}.json"
        if not output.exists():
            run("evaluate", *command, "--weights", weights, "-o", output)
        document: dict[str, Any] = json.loads(output.read_text())
        return document

    def masked(self, weights: str, data: Path) -> dict[str, float]:
        """Return what `benchmarks.masking` finds, with x0 attacked."""
        dataset = rlpips.TwoAFC(data)
        count = min(self.count, 60)
        output = self.folder / f"masking-{count}-{weights}.json"
        if not output.exists():
            items = [dataset[i] for i in range(count)]
            images = [torch.stack([item[key] for item in items]) for key in ("ref", "p0", "p1", "judge")]
            standard = rlpips.LPIPS(check_range=False)
            found = masking.measure(rlpips.LPIPS(weights=weights, check_range=False), standard, images, "x0")
            write_atomically(output, json.dumps(found, indent=1).encode())
        values: dict[str, float] = json.loads(output.read_text())
        return values


def run(*arguments: object) -> None:
    """Run `rlpips`, and stop where it fails."""
    print("+ rlpips", *arguments, flush=True)
    if status := run_command_line([str(each) for each in arguments]):
        raise SystemExit(status)


def table(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print a Markdown table of rows by name, and a gap for what was not measured."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    print(f"\n| {title} | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for name, row in rows.items():
        values = [f"{row[column]:.2f}" if column in row else "" for column in columns]
        print(f"| {name} | {' | '.join(values)} |")


def transposed(rows: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Exchange rows and columns."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: {key: row[name] for key, row in rows.items() if name in row} for name in names}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "photos", type=Path, help="a folder of .jpg files: 700 of ImageNet's and 400 of BSDS500"
    )
    parser.add_argument("folder", type=Path, help="where everything is kept")
    parser.add_argument("--weights", nargs="+", default=WEIGHTS)
    parser.add_argument("--count", type=int, default=400, help="triplets (400; with VGG16 at most 100)")
    options = parser.parse_args(arguments)
    benchmark = Benchmark(options.photos, options.folder, options.count)
    data, large = benchmark.triplets(64, options.count), benchmark.triplets(256, min(options.count, 60))
    main_table, others, masks = {}, {}, {}
    for weights in options.weights:
        alex = not weights.startswith("vgg:")
        fewer = min(options.count, 300)
        count = options.count if alex else min(options.count, 100)
        attack = ["--attack", WHITE_BOX, "--perturb", "x0", "x1", "ref", "--batch-size"]
        row = benchmark.judged("white-box", weights, data, count, *attack, BATCH)
        main_table[weights] = {name.removeprefix(f"{WHITE_BOX} "): value for name, value in row.items()}
        main_table[weights]["inflation"] = benchmark.inflation(weights)
        if not alex or weights == "rlpips-alex-heads":
            continue
        others[weights] = {}
        for other, perturb in OTHERS.items():
            attack = ["--attack", other, "--perturb", *perturb, "--batch-size", BATCH]
            others[weights] |= benchmark.judged(
                other.replace("/", "-").replace(":", "-"), weights, data, fewer, *attack
            )
        attack = ["--attack", WHITE_BOX, "--perturb", "x0", "x1", "ref", "--batch-size", 10]
        row = benchmark.judged("white-box-256", weights, large, min(options.count, 60), *attack)
        others[weights] |= {f"256 px: {name}": value for name, value in row.items()}
        masks[weights] = benchmark.masked(weights, data)
    table(f"accuracy under {WHITE_BOX}", main_table)
    if others:  # of VGG16 there are none
        table("other attacks", transposed(others))
        table("on x0", transposed(masks))
    report.write("robust", [{"white-box": main_table, "others": others, "masking": masks}])


if __name__ == "__main__":
    main()
