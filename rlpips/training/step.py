"""One step of training: attack the metric, measure the loss, follow its gradient."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from rlpips.errors import UndefinedDistanceError
from rlpips.system.processes import Processes
from rlpips.training.optimisation import clamp_heads, update_average
from rlpips.training.recipe import Recipe
from rlpips.training.state import TrainingState
from rlpips.training.triplet_batch import Triplets


def take_step(
    recipe: Recipe, model: nn.Module, state: TrainingState, triplets: Triplets, parts: int = 1
) -> dict[str, Tensor]:
    """Take one step, as in adversarial training (Madry et al. 2018): attack, then descend the loss.

    Args:
        recipe: the recipe.
        model: the loss of `state`, or `DistributedDataParallel` around it.
        state: what the step changes; `state.step` is the step's number, and stays.
        triplets: this process's share of the step's batch.
        parts: compute the step in this many parts, to save memory.

    Returns:
        This process's terms of the loss, from `TripletLoss`, summed over the parts.

    Raises:
        FloatingPointError: the loss or its gradient is not finite in some process. No weight has changed.
    """
    rng = np.random.default_rng((recipe.seed, state.step, 2))
    attack = recipe.draw_attack(rng)
    processes = Processes.current()
    terms: dict[str, Tensor] = {}
    defined = True
    state.optimizer.zero_grad()
    for part in range(parts):
        some = triplets[slice(part, None, parts)] if parts > 1 else triplets
        try:
            attacked = state.loss.attack(some, attack)
        except UndefinedDistanceError:  # go on all the same: other processes wait for this one's gradients
            attacked, defined = [], False
        # processes exchange gradients once, in the last part
        alone = part < parts - 1 and processes.count > 1
        dropout_seed = int(rng.integers(2**31)) + processes.rank
        with model.no_sync() if alone else contextlib.nullcontext(), _seeded(dropout_seed, some.ref):  # type: ignore[operator]
            part_terms = model(some, attacked)
            # processes average their gradients, but the terms of all processes and parts add up
            (part_terms["loss"] * processes.count).backward()
        for name, value in part_terms.items():
            terms[name] = terms.get(name, 0) + value.detach()
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
    problem = _not_finite(terms["loss"].isfinite() & defined, norm.isfinite(), processes)
    if problem:
        state.optimizer.zero_grad()  # without gradients the step counts for the schedule and moves nothing
        state.optimizer.step()
        raise FloatingPointError(f"the {problem} is not finite")
    state.optimizer.step()
    clamp_heads(state.loss.metric)
    if state.average is not None:
        update_average(state.average, state.loss.metric, recipe.ema, state.step)
    return terms


@contextlib.contextmanager
def _seeded(seed: int, images: Tensor) -> Iterator[None]:
    """Seed the global generator, from which dropout draws, and put it back afterwards."""
    devices = [images.device.index or 0] if images.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _not_finite(loss: Tensor, gradient: Tensor, processes: Processes) -> str | None:
    """Name what is not finite in some process, from whether each is finite in this one."""
    finite = torch.stack([loss, gradient]).int()
    if processes.count > 1:
        torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
    for name, good in zip(("loss", "gradient"), finite.tolist(), strict=True):
        if not good:
            return name
    return None
