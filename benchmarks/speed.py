"""The speed of the metric, against every other LPIPS and against its backbone alone.

In every row all packages run in turn in one process, with the same tensors, random weights and threads. A
ratio is the median over the rounds. The other packages run as their constructors make them. 'backbone' is the
convolutions, ReLUs and poolings alone, in channels-last memory.

`python -m benchmarks.speed --device cuda` does the same on a GPU, in float32, TF32 and bfloat16.
"""

import argparse
import contextlib
import copy
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks import peers, report
from benchmarks.timing import in_turn, ratio

SHAPES = {"alex": [(8, 3, 256, 256), (32, 3, 64, 64)], "vgg": [(2, 3, 256, 256)]}
ROUNDS = {"alex": 11, "vgg": 5}
GPU_SHAPES = {
    "alex": [(32, 3, 256, 256), (256, 3, 64, 64)],
    "vgg": [(16, 3, 256, 256)],
}
GPU_ROUNDS = 20
Run = Callable[[], Any]


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Let a GPU compute in 'float32', 'tf32' or 'bfloat16'."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=name == "bfloat16"):
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


def step(run: Callable[[torch.Tensor], Any], x: torch.Tensor) -> None:
    """Run forward, and backward to the images."""
    x = x.clone().requires_grad_()
    out = run(x)
    outs = out if isinstance(out, tuple) else (out,)
    torch.autograd.backward(outs, [torch.ones_like(each) for each in outs])


def rows(net: str, shape: tuple[int, ...], device: str) -> dict[str, dict[str, Run]]:
    """Return what to measure, by row and by name."""
    metrics = peers.metrics(net, device)
    ours: Any = metrics["rlpips"]
    theirs: Any = metrics["lpips"]
    torch.manual_seed(0)
    x, y = (torch.rand(shape, device=device) * 2 - 1 for _ in range(2))
    with torch.no_grad():
        reference = ours.reference(y)
    last = copy.deepcopy(theirs.net).to(memory_format=torch.channels_last)
    x_last, y_last = (each.contiguous(memory_format=torch.channels_last) for each in (x, y))

    def forward(metric: Any) -> Run:
        return torch.no_grad()(lambda: metric(x, y))

    def loss_step(metric: Any, target: Any = y) -> Run:
        return lambda: step(lambda a: metric(a, target), x)

    def reduced(run: Run) -> Run:
        wrapped: Run = torch.no_grad()(torch.autocast("cpu", torch.bfloat16)(run))
        return wrapped

    def backbone() -> Any:
        return last(x_last), last(y_last)

    others = {name: metric for name, metric in metrics.items() if name != "rlpips"}
    table = {
        "forward": {
            "rlpips": forward(ours),
            **{name: forward(metric) for name, metric in others.items()},
            "backbone": torch.no_grad()(backbone),
        },
        "loss step, fixed target": {
            "rlpips": loss_step(ours, reference),
            **{name: loss_step(metric) for name, metric in others.items()},
            "backbone": lambda: step(lambda a: tuple(last(a)), x_last),
        },
        "loss step, both new": {
            "rlpips": loss_step(ours),
            **{name: loss_step(metric) for name, metric in others.items()},
        },
    }
    if device == "cpu":
        table["forward, bfloat16"] = {
            "rlpips": reduced(lambda: ours(x, y)),
            "lpips": forward(theirs),
            "backbone": reduced(backbone),
        }
    if net == "alex":  # compiling takes its time
        compiled = torch.compile(ours, dynamic=False)
        table |= {
            "forward, compiled": {
                "rlpips": forward(compiled),
                "lpips": forward(theirs),
                "eager": forward(ours),
            },
            "loss step, both new, compiled": {
                "rlpips": loss_step(compiled),
                "lpips": loss_step(theirs),
                "eager": loss_step(ours),
            },
        }
    return table


def main(arguments: Sequence[str] = ()) -> None:
    """Print the time of each package over that of rlpips."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device = parser.parse_args(arguments).device
    warnings.simplefilter("ignore")
    result = []
    on_gpu = device == "cuda"
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads"
    print(f"time of others over ours, {where}")
    for net, shapes in (GPU_SHAPES if on_gpu else SHAPES).items():
        for shape in shapes:
            size = "x".join(map(str, shape))
            table = rows(net, shape, device)
            for kind in ("float32", "tf32", "bfloat16") if on_gpu else ("",):
                for row, runs in table.items():
                    if on_gpu:
                        with precision(kind):
                            times = in_turn(runs, GPU_ROUNDS, torch.cuda.synchronize)
                    else:
                        times = in_turn(runs, ROUNDS[net])
                    ratios = {name: ratio(times, name, "rlpips") for name in times if name != "rlpips"}
                    milliseconds = {name: statistics.median(each) * 1000 for name, each in times.items()}
                    name = f"{row}, {kind}".removesuffix(", ")
                    result.append(
                        {"net": net, "shape": shape, "row": name, "ms": milliseconds, "ratios": ratios}
                    )
                    against = "  ".join(f"{name} {value:.2f}" for name, value in ratios.items())
                    print(
                        f"{net:5} {size:13} {name:38} {milliseconds['rlpips']:8.1f} ms  {against}", flush=True
                    )
    report.write("speed-cuda" if on_gpu else "speed", result)


if __name__ == "__main__":
    main(sys.argv[1:])
