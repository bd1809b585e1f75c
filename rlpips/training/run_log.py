"""What a run tells about itself while it goes on: rows of its log, its length, and what came of it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlpips.attacks.objectives import PERTURB
from rlpips.errors import MissingExtraError
from rlpips.system.processes import Processes
from rlpips.training.recipe import Recipe

logger = logging.getLogger("rlpips.training")

_FEW_STEPS = 50  # too few to gain much


class TermMeans:
    """The means of the loss' terms over the steps since the last row of the log, over all processes."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add this process's terms of a step."""
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._steps += 1

    def take(self, processes: Processes) -> dict[str, float]:
        """Return the means by name, nothing if there were no steps, and begin again."""
        sums, steps = self._sums, self._steps
        self._sums, self._steps = {}, 0
        if not steps:
            return {}
        values = torch.stack(list(sums.values()))
        values = (values if values.device.type == "mps" else values.double()) / steps  # mps has no float64
        if processes.count > 1:
            torch.distributed.all_reduce(values)
        return dict(zip(sums, values.tolist(), strict=True))


class TensorBoard:
    """TensorBoard's log of a run.

    Args:
        folder: the run's folder; the log is in `tensorboard` in it.
        step: the number of steps that the run's state has; what the log has of later steps is dropped.

    Raises:
        MissingExtraError: TensorBoard is not installed (extra 'tensorboard').
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("writing TensorBoard's log", "tensorboard") from error
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, section: str, values: Mapping[str, float], step: int) -> None:
        """Write numbers of a step under a section, 'train' or 'validation'."""
        for name, value in values.items():
            self._writer.add_scalar(f"{section}/{name}", value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def progress_values(means: Mapping[str, float]) -> dict[str, str]:
    """Return what the progress bar shows, from the means of the loss' terms."""
    shown = {"loss": means["loss"]}
    if "accuracy" in means:
        shown["accuracy"] = means["accuracy"]
    if "attacked_accuracy" in means:
        shown["attack success"] = 1 - means["attacked_accuracy"]
    return {name: f"{value:.3f}" for name, value in shown.items()}


def warn_if_short(steps: int) -> None:
    """Warn that a run has too few steps to gain much."""
    if steps < _FEW_STEPS:
        logger.warning(
            "this run takes %d steps, and a metric improves little in fewer than some hundreds: raise the "
            "epochs, the number of triplets, or the minutes",
            steps,
        )


def tell_time_left(steps: int, total: int, seconds: float) -> None:
    """Say how many steps are left, and how long they take."""
    logger.info("%d of %d steps are left, which take about %s", steps, total, _duration(seconds))


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 100 * 60 else f"{seconds / 3600:.1f} hours"


def tell_scores(recipe: Recipe, scores: list[dict[str, Any]]) -> None:
    """Say how good the metric was before training, and how good the metric is that is kept."""
    trained = [row for row in scores if row["epoch"]]
    if not trained or scores[0]["epoch"]:
        return
    kept = max(trained, key=lambda row: row["score"]) if recipe.patience else trained[-1]
    for when, row in (("before", scores[0]), ("after", kept)):
        shares = {name: f"{value:.3f}" for name, value in row.items() if name in ("natural", *PERTURB)}
        attacked = "".join(f", {share} with {name} attacked" for name, share in list(shares.items())[1:])
        inflation = f"; inflation {row['inflation']:.3f}" if "inflation" in row else ""
        logger.info("%s: accuracy %s%s%s", when, shares["natural"], attacked, inflation)
