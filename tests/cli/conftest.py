"""Fixtures of the tests of several commands."""

import sys

import numpy as np
import pytest
from peers import images
from PIL import Image

import rlpips


@pytest.fixture
def folders(tmp_path):
    """Two folders with three pairs, of which one differs in size, and files without a partner."""
    for k, name in enumerate(("one", "two")):
        folder = tmp_path / name
        folder.mkdir()
        for i, side in enumerate((64, 64, 64 + 8 * k)):
            data = np.random.default_rng(10 * k + i).integers(0, 256, (64, side, 3), dtype=np.uint8)
            Image.fromarray(data).save(folder / f"{i}.png")
        (folder / ".hidden").write_text("not measured")
    (tmp_path / "one" / "notes.txt").write_text("not an image")
    (tmp_path / "two" / "extra.png").write_bytes(b"")
    return tmp_path / "one", tmp_path / "two"


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Two subsets of seven triplets, and one of six pairs, of noise."""
    root = tmp_path_factory.mktemp("data")
    for subset in ("one", "two"):
        for i in range(7):
            ref = 0.8 * images(1, 3, 40, 40, seed=i).clamp(-1, 1)
            for name, strength in (("ref", 0.0), ("p0", 0.06), ("p1", 0.09)):
                path = root / "2afc" / "val" / subset / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noisy = (ref + strength * images(1, 3, 40, 40, seed=i + 10 + len(subset))).clamp(-1, 1)
                Image.fromarray(rlpips.tensor2im(noisy)).save(path)
            path = root / "2afc" / "val" / subset / "judge" / f"{i}.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, np.array([0.2]))
    for i in range(6):
        for name in ("p0", "p1"):
            path = root / "jnd" / "val" / "one" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shade = images(1, 3, 40, 40, seed=i) * (1 if name == "p0" else 1 - 0.1 * i)
            Image.fromarray(rlpips.tensor2im(shade.clamp(-1, 1))).save(path)
        path = root / "jnd" / "val" / "one" / "same" / f"{i}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.array([1 - i / 6]))
    return root


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A working folder of modules, which are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
