"""What is fuzzed. Each campaign takes a folder and yields functions that run one example from a random generator.

An example returns whether the package took what it was given, and raises `AssertionError` where it should not have,
or where an error is not the one that the package promises.
"""

import io
import pickle
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import rlpips
from fuzz.checks import Example, names_it, on_time
from fuzz.damage import damage
from fuzz.reports import reports
from fuzz.servers import servers
from rlpips import images
from rlpips.backbones import architecture
from rlpips.hub import checkpoints
from rlpips.training.run_folder import RunFolder


class Bomb:
    """An object whose unpickling leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def saved(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def checkpoint_files(folder: Path) -> Iterator[Example]:
    """Checkpoints of each format, damaged."""
    arch = architecture("squeeze")
    torch.manual_seed(0)
    metric = rlpips.LPIPS(net="squeeze", pnet_rand=True, lpips=True, pretrained=False, use_dropout=False)
    for lin in metric.lins:
        lin.channel_weights.data.abs_()
    state = metric.state_dict()
    heads = {key: value for key, value in state.items() if key.startswith("lin")}
    own = folder / "own.pth"
    checkpoints.save(own, state, {"name": "fuzz"})
    files = {
        "own": own.read_bytes(),
        "metric": saved(state),
        "heads": saved(heads),
        "old": saved(heads, _use_new_zipfile_serialization=False),
    }
    path = folder / "checkpoint.pth"
    truth = {}
    for name, data in files.items():
        path.write_bytes(data)
        truth[name] = checkpoints.read(path, arch)
    trap = folder / "trap"

    def example(rng: random.Random) -> bool:
        name = rng.choice(("own", "metric", "heads", "heads", "heads", "old", "old"))
        data = damage(files[name], rng)
        path.write_bytes(data)
        try:
            with on_time():
                found = checkpoints.read(path, arch)
        except rlpips.CheckpointError as error:
            names_it(error, path)
            return False
        same = {
            part: (getattr(found, part) is None) == (getattr(truth[name], part) is None)
            for part in ("heads", "backbone")
        }
        if all(same.values()):
            if found.heads is not None:
                same["heads"] = all(map(torch.equal, found.heads, truth[name].heads))
            if found.backbone is not None:
                same["backbone"] = all(
                    torch.equal(value, truth[name].backbone[key]) for key, value in found.backbone.items()
                )
        # the older format has nothing that could tell
        assert name == "old" or all(same.values()), f"a damaged file ({name}) was taken with other numbers"
        return True

    def hostile(rng: random.Random) -> bool:
        """Code in the pickle, of a sound zip and of an old file."""
        content = {**heads, "lin9": Bomb(trap)} if rng.random() < 0.5 else Bomb(trap)
        if rng.random() < 0.5:
            path.write_bytes(pickle.dumps(content, protocol=2))
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("x/data.pkl", pickle.dumps(content, protocol=2))
                archive.writestr("x/version", "3\n")
                archive.writestr("x/byteorder", "little")
        try:
            with on_time():
                checkpoints.read(path, arch)
        except rlpips.CheckpointError as error:
            names_it(error, path)
        else:
            raise AssertionError("a file that holds code was taken")
        assert not trap.exists(), "code of a file ran"
        return False

    yield lambda rng: hostile(rng) if rng.random() < 0.02 else example(rng)


def image_files(folder: Path) -> Iterator[Example]:
    """Images of each format, damaged."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    files = {}
    for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, form)
        files[form] = buffer.getvalue()

    def example(rng: random.Random) -> bool:
        form = rng.choice(list(files))
        path = folder / f"image.{form.lower()}"
        path.write_bytes(damage(files[form], rng))
        try:
            with on_time():
                found = images.load_image(path)
        except rlpips.ImageError as error:
            names_it(error, path)
            return False
        assert found.dtype == np.uint8
        assert found.ndim == 3
        assert found.shape[2] == 3
        return True

    yield example


def states(folder: Path) -> Iterator[Example]:
    """States of training runs, damaged: they may be refused, or be what they were."""
    run = RunFolder(folder / "run", {"recipe": {}, "data": {}, "teachers": {}})
    run.path.mkdir()
    generator = torch.Generator().manual_seed(0)
    state = {
        "step": 7,
        "loss": {"weight": torch.rand(40, 40, generator=generator)},
        "rows": [{"step": 7, "loss": 0.5}],
    }
    run.save_state(state, state["loss"])
    data = run.state_file.read_bytes()

    def example(rng: random.Random) -> bool:
        run.state_file.write_bytes(damage(data, rng))
        try:
            with on_time():
                found = run.load_state()
        except rlpips.CheckpointError as error:
            names_it(error, run.state_file)
            return False
        assert found is not None
        assert found["step"] == 7
        assert found["rows"] == state["rows"]
        assert torch.equal(found["loss"]["weight"], state["loss"]["weight"]), "a damaged state was taken"
        return True

    yield example


def arguments(_: Path) -> Iterator[Example]:
    """Tensors of any shape, dtype and value, and arguments of any type."""
    torch.manual_seed(0)
    metric = rlpips.LPIPS(pnet_rand=True, pretrained=False, check_range=False).eval()
    dtypes = (
        torch.float32,
        torch.float32,
        torch.float16,
        torch.float64,
        torch.uint8,
        torch.int64,
        torch.bool,
    )
    sizes = (0, 1, 2, 3, 3, 3, 4, 30, 31, 40, 64)

    def image(rng: random.Random) -> object:
        if rng.random() < 0.05:
            return rng.choice((None, "a.png", 3, [[1.0]], np.zeros((1, 3, 64, 64), np.float32)))
        if rng.random() < 0.5:
            shape = (rng.choice((1, 2)), rng.choice((1, 3)), 40, 40)
        else:
            shape = tuple(rng.choice(sizes) for _ in range(rng.choice((0, 1, 2, 3, 4, 4, 5))))
        x = torch.rand(shape).to(rng.choice(dtypes))
        if x.is_floating_point() and rng.random() < 0.2:
            x = x * rng.choice((1e30, 1e-30, 0.0, -1.0))
        return x

    def example(rng: random.Random) -> bool:
        options = {
            "normalize": rng.random() < 0.3,
            "retPerLayer": rng.random() < 0.3,
            "tile": rng.choice((None, None, None, 16, 64, 0, -3, 2.5, "x")),
        }
        x, y = image(rng), image(rng)
        try:
            with on_time(), torch.no_grad():
                found = metric(x, y, **options)
        except (TypeError, ValueError) as error:
            told = str(error)
        else:
            told = ""
        if told:
            assert 10 < len(told) < 2000
            return False
        total = found[0] if options["retPerLayer"] else found
        assert total.shape[1:] == (1, 1, 1)
        assert isinstance(x, torch.Tensor)
        assert isinstance(y, torch.Tensor)
        assert not total.isnan().any() or x.abs().max() > 100 or y.abs().max() > 100
        return True

    yield example


CAMPAIGNS = {
    "checkpoints": checkpoint_files,
    "images": image_files,
    "states": states,
    "arguments": arguments,
    "reports": reports,
    "servers": servers,
}


def run(name: str, folder: Path, seed: int, count: int) -> dict[str, int]:
    """Run examples of a campaign and count what was taken and what was refused; an example's seed is in its error."""
    counts = {"taken": 0, "refused": 0}
    (example,) = CAMPAIGNS[name](folder)
    for number in range(seed, seed + count):
        try:
            taken = example(random.Random(number))
        except Exception as error:
            raise AssertionError(f"{name}, seed {number}: {type(error).__name__}: {error}") from error
        counts["taken" if taken else "refused"] += 1
    return counts
