"""What is fuzzed. Each campaign takes a folder and yields functions that run one example from a random generator.

An example returns whether the package took what it was given, and raises `AssertionError` where it should not have,
or where an error is not the one that the package promises.
"""

import io
import json
import pickle
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
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
    own = folder / "own.safetensors"
    checkpoints.save(own, heads, {"name": "fuzz", "scores": [{"epoch": 1, "score": 0.5}]})
    files = {
        "own": own.read_bytes(),
        "safetensors": safetensors.torch.save(heads),
        "metric": saved(state),
        "heads": saved(heads),
        "old": saved(heads, _use_new_zipfile_serialization=False),
    }
    untold = ("old", "safetensors")  # these formats have nothing that could tell whether numbers changed
    path = folder / "checkpoint.pth"
    truth = {}
    for name, data in files.items():
        (folder / name).write_bytes(data)  # a file of its own, as tensors are mapped from it
        truth[name] = checkpoints.read(folder / name, arch)
    trap = folder / "trap"

    def example(rng: random.Random) -> bool:
        name = rng.choice(("own", "own", "own", "safetensors", "metric", "heads", "heads", "old"))
        if name in ("own", "safetensors") and rng.random() < 0.5:
            path.write_bytes(change_header(files[name], rng))
        else:
            path.write_bytes(damage(files[name], rng))
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
        assert name in untold or all(same.values()), f"a damaged file ({name}) was taken with other numbers"
        if found.metadata:
            assert found.metadata == truth[name].metadata, "other metadata were taken"
        for head in found.heads or []:
            assert head.isfinite().all()
            assert (head >= 0).all()
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


def change_header(data: bytes, rng: random.Random) -> bytes:
    """Change what the header of a safetensors file says, in JSON that is valid."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    one, other = rng.choice(names), rng.choice(names)
    number = rng.choice((-1, 0, 1, 3, 255, 2**31, 2**40, 2**63, 2**64 - 1, 10**30, 0.5, None, "1", [], True))
    match rng.randrange(9):
        case 0:
            header[one]["dtype"] = rng.choice(
                ("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E5M2", "C64", "", 4)
            )
        case 1:
            header[one]["shape"] = rng.choice(
                ([], [number], [1, number, 1, 1], [2**32, 2**32], number, [1] * 5000)
            )
        case 2:
            header[one]["data_offsets"] = rng.choice(([number, number], [0, number], [number], number))
        case 3:
            header[one], header[other] = header[other], header[one]
        case 4:
            header[one] = dict(header[other])
        case 5:
            header[rng.choice(("", "lin9", "\x1b[2J", "x" * 10_000, "net.slice1.0.weight"))] = header.pop(one)
        case 6:
            text = header.get("__metadata__", {}).get("rlpips", "{}")
            header["__metadata__"] = {"rlpips": damage(text.encode(), rng).decode(errors="replace")}
        case 7:
            header["__metadata__"] = rng.choice(
                (number, {"rlpips": number}, {"rlpips": "[" * 50_000}, {}, {"a": "b"})
            )
        case 8:
            header[one] = rng.choice((number, {}, {**header[one], "more": number}))
    text = json.dumps(header).encode() + b" " * rng.choice((0, 0, 1, 7))
    size = len(text) if rng.random() < 0.9 else rng.choice((0, 1, len(text) + 1, 2**31, 2**63, 2**64 - 1))
    return size.to_bytes(8, "little") + text + data[8 + length :]


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
