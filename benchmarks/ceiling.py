"""How fast a metric can be: the time of its convolutions alone, and how close they are to the CPU's limit.

`ceiling` is the time of `lpips` (in float32) over the time of our convolutions: the speed-up if nothing else
took any time. A product of large matrices in the same precision stands for the CPU's limit.
"""

import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import report, speed
from benchmarks.timing import in_turn

CONVOLUTIONS = ("aten::mkldnn_convolution", "aten::convolution_backward")
WORK = ("forward", "loss step, both new", "forward, bfloat16")
SIDE = 4096


def product(dtype: torch.dtype) -> float:
    """Return the GFLOP/s of a product of two large matrices."""
    a, b = torch.rand(2, SIDE, SIDE).to(dtype)
    return 2 * SIDE**3 / min(in_turn({"product": lambda: a @ b}, 5)["product"]) / 1e9


def convolving(run: Callable[[], Any]) -> float:
    """Return the seconds of a run that are spent in convolutions."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    events = (event for event in profiler.key_averages() if event.key in CONVOLUTIONS)
    microseconds: float = sum(event.self_cpu_time_total for event in events)
    return microseconds / 1e6


def measure(net: str, shape: tuple[int, ...], peak: dict[bool, float]) -> list[dict[str, Any]]:
    """Return a row for each kind of work."""
    table = speed.rows(net, shape, "cpu")
    rows = []
    for work in WORK:
        ours, theirs = (table[work][name] for name in ("rlpips", "lpips"))
        with FlopCounterMode(display=False) as counter:
            ours()
        inside, shares, ceilings = [], [], []
        for _ in range(speed.ROUNDS[net]):
            inside.append(convolving(ours))
            times = in_turn({"ours": ours, "theirs": theirs}, 1)
            shares.append(inside[-1] / times["ours"][0])
            ceilings.append(times["theirs"][0] / inside[-1])
        gflops = counter.get_total_flops() / statistics.median(inside) / 1e9
        row = {
            "share": statistics.median(shares),
            "GFLOP/s": gflops,
            "of a product": gflops / peak[work.endswith("bfloat16")],
            "ceiling": statistics.median(ceilings),
        }
        rows.append({"net": net, "shape": shape, "row": work, **row})
    return rows


def main() -> None:
    """Print the convolutions' share of the time, their speed, and the ceiling."""
    warnings.simplefilter("ignore")
    peak = {False: product(torch.float32), True: product(torch.bfloat16)}
    print(f"a matrix product: {peak[False]:.0f} GFLOP/s in float32, {peak[True]:.0f} in bfloat16")
    result = []
    for net, shapes in speed.SHAPES.items():
        for shape in shapes:
            for row in measure(net, shape, peak):
                print(
                    f"{net:5} {'x'.join(map(str, shape)):13} {row['row']:20} convolutions: "
                    f"{row['share']:4.0%} of the time, {row['GFLOP/s']:4.0f} GFLOP/s, "
                    f"{row['of a product']:.2f} of a product; ceiling {row['ceiling']:.2f}",
                    flush=True,
                )
                result.append(row)
    report.write("ceiling", result)


if __name__ == "__main__":
    main()
