"""The time of an adversarial training step on the whole AlexNet, in `rlpips train` and in the reference code.

The reference R-LPIPS code runs all four images of two distances through the backbone, forward and backward,
with gradients to every weight, at every step of its attack, in float32. Both do the same work on the same
batch, from the same random AlexNet, in turn: PGD on x0, then a step of Adam. Ours runs in float32, and with a
backbone in bfloat16.
"""

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
from benchmarks import report
from benchmarks.attacks import reference_way
from benchmarks.timing import in_turn, ratio
from rlpips.system.processes import Processes
from rlpips.training import Recipe
from rlpips.training.batches import to_triplets
from rlpips.training.state import new_state
from rlpips.training.step import take_step


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


def row(steps: int, batch: int, precision: str, rounds: int) -> dict[str, Any]:
    """Measure one step of training on a batch of random triplets."""
    torch.manual_seed(0)
    ref = torch.rand(batch, 3, 64, 64) * 2 - 1
    p0, p1 = ((ref + 0.1 * torch.randn_like(ref)).clamp(-1, 1) for _ in range(2))
    judge, index = torch.zeros(batch, 1, 1, 1), torch.arange(batch)
    triplets = {"ref": ref, "p0": p0, "p1": p1, "judge": judge, "index": index}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "random.pth"
        start = rlpips.LPIPS(pnet_rand=True).state_dict()
        torch.save(start, weights)
        recipe = Recipe(
            mode="adversarial",
            train="all",
            weights=str(weights),
            steps=steps,
            batch=batch,
            precision=precision,
        )
        state = new_state(recipe, 1.0, torch.device("cpu"), (ref, p0))
    state.loss.train()

    def ours() -> None:
        some = to_triplets(triplets, None, recipe, state.step, torch.device("cpu"), Processes())
        take_step(recipe, state.loss, state, some)
        state.step += 1

    times = in_turn({"reference": reference(triplets, start, recipe), "rlpips": ours}, rounds)
    rates = {name: batch / statistics.median(each) for name, each in times.items()}
    return {
        "steps": steps,
        "batch": batch,
        "precision": precision,
        "triplets a second": rates,
        "ratio": ratio(times, "reference", "rlpips"),
    }


def main(rounds: int = 5) -> None:
    """Print the rates, and the median ratio over the rounds."""
    warnings.simplefilter("ignore")
    print(f"adversarial training of AlexNet, PGD on x0, 64 px, {torch.get_num_threads()} threads")
    result = []
    for steps, batch, precision in ((3, 64, "bfloat16"), (5, 50, "float32"), (5, 50, "bfloat16")):
        found = row(steps, batch, precision, rounds)
        result.append(found)
        rates = "  ".join(f"{name} {rate:6.1f}/s" for name, rate in found["triplets a second"].items())
        print(f"{steps} steps, batch {batch}, {precision:8}  {rates}  ratio {found['ratio']:.2f}", flush=True)
    report.write("training", result)


if __name__ == "__main__":
    main()
