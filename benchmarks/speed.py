"""The speed of the metric against `lpips` and against its backbone alone.

Every row is measured in turn with its rivals in one process, with the same tensors and random weights, and
reported as the median of the ratios of each round. `lpips` runs as it comes out of its constructor.
"""

import contextlib
import copy
import io
import json
import platform
import statistics
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lpips
import torch

import rlpips
from benchmarks.timing import in_turn, ratio

RESULTS = Path(__file__).parent / "results" / "speed.json"
SHAPES = {"alex": [(8, 3, 256, 256), (32, 3, 64, 64)], "vgg": [(2, 3, 256, 256)]}
Run = Callable[[], Any]


def metrics(net: str) -> dict[str, torch.nn.Module]:
    """Build our metric and that of `lpips` with the same random weights."""
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = lpips.LPIPS(net=net, pnet_rand=True)
    ours = rlpips.LPIPS(net=net, pnet_rand=True, check_range=False)
    ours.load_state_dict(theirs.state_dict())
    return {"rlpips": ours, "lpips": theirs}


def step(run: Callable[[torch.Tensor], Any], x: torch.Tensor) -> None:
    """Run forward, and backward to the images."""
    x = x.clone().requires_grad_()
    out = run(x)
    outs = out if isinstance(out, tuple) else (out,)
    torch.autograd.backward(outs, [torch.ones_like(each) for each in outs])


def rows(net: str, shape: tuple[int, ...]) -> dict[str, dict[str, Run]]:
    """Return what to measure, by row and by name; a name 'backbone' is the convolutions, ReLUs and pools."""
    made = metrics(net)
    ours, theirs = made["rlpips"], made["lpips"]
    torch.manual_seed(0)
    x, y = (torch.rand(shape) * 2 - 1 for _ in range(2))
    with torch.no_grad():
        reference = ours.reference(y)  # type: ignore[operator]
    last = copy.deepcopy(theirs.net).to(memory_format=torch.channels_last)
    x_last, y_last = (each.contiguous(memory_format=torch.channels_last) for each in (x, y))

    def without_gradients(run: Run) -> Run:
        return torch.no_grad()(run)

    def autocast() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            ours(x, y)

    return {
        "forward": {
            "rlpips": without_gradients(lambda: ours(x, y)),
            "lpips": without_gradients(lambda: theirs(x, y)),
            "backbone": without_gradients(lambda: (last(x_last), last(y_last))),
        },
        "loss step, fixed target": {
            "rlpips": lambda: step(lambda a: ours(a, reference), x),
            "lpips": lambda: step(lambda a: theirs(a, y), x),
            "backbone": lambda: step(lambda a: tuple(last(a)), x_last),
        },
        "loss step, new target": {
            "rlpips": lambda: step(lambda a: ours(a, y), x),
            "lpips": lambda: step(lambda a: theirs(a, y), x),
        },
        "forward, bfloat16 autocast": {"rlpips": autocast, "lpips": without_gradients(lambda: theirs(x, y))},
    }


def versions() -> dict[str, str]:
    """Return the versions of what is measured."""
    known = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("torch", "lpips"):
        with contextlib.suppress(PackageNotFoundError):
            known[name] = version(name)
    return {**known, "rlpips": rlpips.__version__}


def main(rounds: int = 7) -> None:
    """Print how many times as long the rivals take as we do, and write it to `results/speed.json`."""
    warnings.simplefilter("ignore")
    result = []
    for net, shapes in SHAPES.items():
        for shape in shapes:
            table = rows(net, shape)
            for row, runs in table.items():
                times = in_turn(runs, rounds)
                ratios = {name: ratio(times, name, "rlpips") for name in times if name != "rlpips"}
                milliseconds = {name: statistics.median(each) * 1000 for name, each in times.items()}
                result.append({"net": net, "shape": shape, "row": row, "ms": milliseconds, "ratios": ratios})
                size = "x".join(map(str, shape))
                against = "  ".join(f"{name} {value:.2f}" for name, value in ratios.items())
                print(f"{net:5} {size:14} {row:28} {milliseconds['rlpips']:8.1f} ms  {against}", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    about = {
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "arguments": sys.argv[1:],
    }
    RESULTS.write_text(json.dumps({**about, "rows": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
