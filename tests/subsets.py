"""Data sets of human judgements in BAPPS' layout, with random images."""

import numpy as np
from PIL import Image

FOLDERS = {"2afc": ("ref", "p0", "p1", "judge"), "jnd": ("p0", "p1", "same")}


def pixels(seed, size=16):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def make_subset(folder, kinds, count, seed=0):
    """Write a subset; example i is judged i / 10."""
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            if kind in ("judge", "same"):
                np.save(folder / kind / f"{i:06d}.npy", np.array([i / 10], dtype=np.float32))
            else:
                Image.fromarray(pixels([seed, i, kinds.index(kind)])).save(folder / kind / f"{i:06d}.png")
