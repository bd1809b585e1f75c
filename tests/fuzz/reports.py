"""Files that the package wrote and reads again: results of a report, of teachers, of triplets and of runs."""

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fuzz.checks import Example, names_it, on_time
from fuzz.damage import damage
from rlpips import CheckpointError, DatasetError, TwoAFC
from rlpips.data import make_triplets
from rlpips.evaluation.result_cache import Measurements, ResultCache
from rlpips.training.run_folder import RunFolder
from rlpips.training.teachers import measure_teachers


def reports(folder: Path) -> Iterator[Example]:
    """Files that were written to go on from, damaged: they are refused, made again, or what they were."""
    kinds = [make(folder) for make in (results, teachers, triplets, runs, judgements)]
    yield lambda rng: rng.choice(kinds)(rng)


def results(folder: Path) -> Example:
    """What an interrupted report has measured."""
    rng = np.random.default_rng(0)
    truth = Measurements(
        {"d0": rng.random(9), "judge": rng.random(9)}, {4: rng.random((3, 4, 4), np.float32)}
    )
    kept, key = ResultCache(folder / "report.json"), {"metric": "x", "seed": 0}
    kept.get(key, lambda: truth)
    (path,) = (folder / "report.json.parts").iterdir()
    whole = path.read_bytes()

    def example(rng: random.Random) -> bool:
        path.write_bytes(damage(whole, rng))
        measured = []

        def again() -> Measurements:
            measured.append(truth)
            return truth

        with on_time():
            found = kept.get(key, again)
        for name in ("columns", "images"):
            ours, theirs = getattr(found, name), getattr(truth, name)
            assert ours.keys() == theirs.keys()
            assert all(np.array_equal(ours[each], theirs[each]) for each in theirs), "other numbers were used"
        assert path.read_bytes() == whole or not measured, "what was measured again was not kept"
        return not measured

    return example


def teachers(folder: Path) -> Example:
    """Distances of teachers."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5, 3, 3, 4, 4, generator=generator) * 2 - 1
    data = [{"ref": ref, "p0": p0, "p1": p1} for ref, p0, p1 in x]
    place = folder / "teachers"

    def logs() -> torch.Tensor:
        metrics = {"l2": lambda a, b: (a - b).square().mean((1, 2, 3))}
        return measure_teachers(metrics, data, place, {"data": "fuzz"})

    truth = logs()
    (path,) = place.iterdir()
    whole = path.read_bytes()

    def example(rng: random.Random) -> bool:
        path.write_bytes(damage(whole, rng))
        try:
            with on_time():
                found = logs()
        except CheckpointError as error:
            names_it(error, path)
            return False
        assert torch.equal(found, truth), "other distances were used"
        return True

    return example


def triplets(folder: Path) -> Example:
    """The record of a panel's choices, when a triplet is made anew by it."""
    photos = folder / "photos"
    photos.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photos / "photo.png")

    def make() -> None:
        make_triplets(
            photos,
            folder / "made",
            count=3,
            size=16,
            labels="panel",
            panel=("psnr",),
            distortions=["hue", "gaussian-noise"],
        )

    make()
    subset = folder / "made" / "2afc" / "val" / "triplets"
    record = subset.with_name("triplets.json")
    whole = record.read_bytes()
    files = {path: path.read_bytes() for path in sorted(subset.rglob("*.*"))}

    def example(rng: random.Random) -> bool:
        record.write_bytes(damage(whole, rng))
        (subset / "judge" / "000001.npy").unlink()
        try:
            with on_time():
                make()
        except DatasetError as error:
            names_it(error, subset)
            return False
        finally:
            found = {path: path.read_bytes() for path in sorted(subset.rglob("*.*"))}
            for path in found.keys() - files.keys():
                path.unlink()
            for path, content in files.items():
                path.write_bytes(content)
        assert found == files, "other triplets were made"
        return True

    return example


def runs(folder: Path) -> Example:
    """What makes a run, which another run may not go on with."""
    description = {
        "recipe": {"net": "alex", "steps": 100, "lr": 1e-4, "teachers": ["a", "b"], "perturb": None},
        "data": {"photos": "700 files, sha256:0123456789abcdef", "size": 64},
        "teachers": {"a": "sha256:" + "5" * 64},
        "versions": {"torch": "2.6"},
    }
    run = RunFolder(folder / "run", description)
    with run.opened():
        pass
    file = run.path / "run.json"
    whole = file.read_bytes()

    def example(rng: random.Random) -> bool:
        damaged = damage(whole, rng)
        file.write_bytes(damaged)
        try:
            with on_time(), run.opened():
                pass
        except ValueError as error:
            names_it(error, run.path)
            return False
        found = json.loads(damaged)
        for name in ("recipe", "data", "teachers"):  # null is what is not set
            ours, theirs = (
                {k: v for k, v in each[name].items() if v is not None} for each in (found, description)
            )
            assert ours == theirs, "another run was taken"
        return True

    return example


def judgements(folder: Path) -> Example:
    """A judgement, of which nothing but a share may be taken."""
    subset = folder / "judged" / "2afc" / "val" / "cnn"
    for name in ("ref", "p0", "p1"):
        (subset / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(subset / name / "000000.png")
    (subset / "judge").mkdir()
    path = subset / "judge" / "000000.npy"
    forms = []
    for save in (np.save, np.savez, lambda file, array: np.save(file, array.astype(object))):
        buffer = io.BytesIO()
        save(buffer, np.array([0.75], np.float32))
        forms.append(buffer.getvalue())
    path.write_bytes(forms[0])
    data = TwoAFC(folder / "judged")

    def example(rng: random.Random) -> bool:
        path.write_bytes(damage(rng.choice((*forms[:1] * 8, *forms[1:])), rng))
        try:
            with on_time():
                share = data[0]["judge"]
        except DatasetError as error:
            names_it(error, path)
            return False
        assert share.shape == (1, 1, 1)
        assert 0 <= share <= 1
        return True

    return example
