"""Adversarial training of the whole AlexNet: a step of `rlpips train` against one of the reference code.

The reference R-LPIPS code runs all four images of two distances through the backbone and back, with gradients
to every weight, at every step of its attack, in float32. Both ways here do the same work on the same batch,
from the same random AlexNet, in turn: PGD of three steps on x0, then a step of Adam; ours with bfloat16.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lpips
import torch

import rlpips
from benchmarks.attacks import reference_way
from benchmarks.timing import in_turn, ratio
from rlpips.processes import Processes
from rlpips.recipes import Recipe
from rlpips.training import _new_state, _step, _triplets


def reference(batch: dict[str, torch.Tensor], start: dict[str, torch.Tensor], recipe: Recipe) -> Any:
    """Return a function that takes one step with `lpips`."""
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = lpips.Trainer()
        trainer.initialize("lpips", pnet_rand=True, pnet_tune=True, use_gpu=False, is_train=True)
    trainer.net.load_state_dict(start)

    def step() -> None:
        images = batch["ref"], batch["p0"], batch["p1"]
        delta = reference_way(trainer.net, *images, 2 * recipe.eps, recipe.steps)
        trainer.set_input({**batch, "p0": batch["p0"] + delta})
        trainer.optimize_parameters()

    return step


def main() -> None:
    """Print medians and the ratio, pair by pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    ref = torch.rand(64, 3, 64, 64) * 2 - 1
    p0, p1 = ((ref + 0.1 * torch.randn_like(ref)).clamp(-1, 1) for _ in range(2))
    batch = {"ref": ref, "p0": p0, "p1": p1, "judge": torch.zeros(64, 1, 1, 1), "index": torch.arange(64)}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "random.pth"
        start = rlpips.LPIPS(pnet_rand=True).state_dict()
        torch.save(start, weights)
        recipe = Recipe(
            mode="adversarial",
            train="all",
            weights=str(weights),
            steps=3,
            batch=64,
            precision=options.precision,
        )
        state = _new_state(recipe, None, torch.device("cpu"))
    state.loss.train()

    def ours() -> None:
        triplets = _triplets(batch, None, recipe, state.step, torch.device("cpu"), Processes())
        _step(recipe, state.loss, state, triplets, 1)
        state.step += 1

    ways = {"reference": reference(batch, start, recipe), "rlpips": ours}
    times = in_turn(ways, options.rounds)
    print(f"AlexNet, PGD 3 steps on x0, batch 64, 64 px, {options.precision}, {options.threads} threads")
    for name, each in times.items():
        print(f"{name:12} {64 / statistics.median(each):8.1f} triplets a second")
    print(f"{'ratio':12} {ratio(times, 'reference', 'rlpips'):8.2f}")


if __name__ == "__main__":
    main()
