"""The time of a PGD step on a metric, in `rlpips.attacks` and in the reference R-LPIPS code.

That code runs all four images of two distances through the backbone, forward and backward, at every step.
Both take the same number of steps on the same batch, in float32, with the same random AlexNet, in turn.
"""

import contextlib
import io
import statistics
import warnings

import lpips
import torch

import rlpips
from benchmarks import report
from benchmarks.timing import in_turn, ratio
from rlpips.attacks import PGD, RankFlip


def reference_way(
    metric: torch.nn.Module, ref: torch.Tensor, x0: torch.Tensor, x1: torch.Tensor, eps: float, steps: int
) -> torch.Tensor:
    """Attack `x0` as the reference code does: four passes a step, gradients to every image."""
    ranking = lpips.BCERankingLoss()
    judge = torch.zeros(len(ref), 1, 1, 1)
    ref, x0, x1 = (each.clone().requires_grad_() for each in (ref, x0, x1))
    delta = torch.zeros_like(x0, requires_grad=True)
    for _ in range(steps):
        ranking(metric(ref, x0 + delta), metric(ref, x1), judge * 2 - 1).backward()
        assert delta.grad is not None
        delta.data = (delta + 2.5 * eps / steps * delta.grad.sign()).clamp(-eps, eps)
        delta.grad.zero_()
    return delta.detach()


def main(batch: int = 50, size: int = 64, steps: int = 50, rounds: int = 3) -> None:
    """Print a table of medians and the ratio, pair by pair."""
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = lpips.LPIPS(pnet_rand=True)
    ours = rlpips.LPIPS(pnet_rand=True, check_range=False)
    ours.load_state_dict(theirs.state_dict())
    torch.manual_seed(0)
    ref = torch.rand(batch, 3, size, size) * 2 - 1
    x0, x1 = ((ref + 0.1 * torch.randn_like(ref)).clamp(-1, 1) for _ in range(2))
    eps = 4 / 255

    def run_ours() -> None:
        objective = RankFlip(ours, ref, x0, x1, torch.zeros(batch))
        objective.goal = float("inf")  # no image is finished early
        PGD("linf", eps, steps)(objective, objective.x)

    ways = {"reference": lambda: reference_way(theirs, ref, x0, x1, 2 * eps, steps), "rlpips": run_ours}
    times = in_turn(ways, rounds)
    print(f"PGD, {steps} steps on x0, batch {batch}, {size} px, float32, {torch.get_num_threads()} threads")
    for name, each in times.items():
        print(f"{name:12} {statistics.median(each) / steps * 1000:8.1f} ms a step")
    times_faster = ratio(times, "reference", "rlpips")
    print(f"{'ratio':12} {times_faster:8.2f}")
    milliseconds = {name: statistics.median(each) / steps * 1000 for name, each in times.items()}
    report.write(
        "attacks",
        [{"steps": steps, "batch": batch, "size": size, "ms a step": milliseconds, "ratio": times_faster}],
    )


if __name__ == "__main__":
    main()
