"""CSV tables of human judgements, with small images beside them."""

import csv

import numpy as np
import torch
from PIL import Image

import rlpips


def save(path, grey, size=(20, 24)):
    """Write an image of one grey level in [0, 255]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), grey, dtype=np.uint8)).save(path)


def write_table(path, rows, encoding="utf-8"):
    """Write dicts as a CSV table; return its path."""
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def scored_pairs(folder, score="dmos", references=3, each=4, sign=1):
    """Write pairs whose score is `sign` times the difference of their grey levels; return the table's rows.

    The references differ in size. There are two types, each with pairs of all references.
    """
    rows = []
    for r in range(references):
        save(folder / "refs" / f"r{r}.png", 100, (20, 24 + 4 * r))
        for k in range(each):
            step = 1 + k * references + r
            save(folder / "dist" / f"r{r}-{k}.png", 100 + step, (20, 24 + 4 * r))
            kind = "jpeg" if k % 2 else "blur"
            rows.append(
                {"ref": f"refs/r{r}.png", "dist": f"dist/r{r}-{k}.png", score: sign * step, "type": kind}
            )
    return rows


def forced_choices(folder, references=3, each=4, same_size=True):
    """Write triplets of which people chose the image nearer in grey, but for the last of each reference."""
    rows = []
    for r in range(references):
        size = (40, 40 if same_size else 40 + 4 * r)
        save(folder / f"r{r}.png", 100, size)
        for k in range(each):
            save(folder / f"r{r}-{k}-a.png", 104 + k, size)
            save(folder / f"r{r}-{k}-b.png", 102 + 4 * (k % 2) + k, size)
            nearer = 1 - k % 2  # b, if it is 2 nearer
            votes = 1 - nearer if k == each - 1 else nearer
            rows.append({
                "ref": f"r{r}.png", "a": f"r{r}-{k}-a.png", "b": f"r{r}-{k}-b.png", "votes": votes,
                "type": "jpeg" if k < each // 2 else "blur",
            })  # fmt: skip
    return rows


def difference(x, y):
    """A metric: the mean absolute difference, in grey levels."""
    return ((x - y).abs().mean(dim=(1, 2, 3)) * 127.5).round(decimals=3)


def read(path):
    """Return an image as the data sets give it, `(3, H, W)`."""
    return torch.from_numpy(rlpips.load_image(path)).permute(2, 0, 1) / 127.5 - 1
