"""Training a metric on triplets: natural, adversarial or contrastive; resumable, on one process or several.

Everything random is drawn from the recipe's seed and the step's number alone, so a run that was killed and
resumed ends with the same weights as one that was not, on the same machine.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from rlpips._version import __version__
from rlpips.attacks.metrics import Metric
from rlpips.data.judgements import collate
from rlpips.errors import DatasetError, UndefinedDistanceError
from rlpips.hub import checkpoints
from rlpips.hub.digests import metric_digest
from rlpips.system.processes import Processes
from rlpips.system.progress import progress
from rlpips.training.batches import Items, TurnedTriplets, read_batches, to_triplets
from rlpips.training.optimisation import rate_factor
from rlpips.training.recipe import Recipe
from rlpips.training.run_folder import RunFolder
from rlpips.training.run_log import (
    TensorBoard,
    TermMeans,
    logger,
    progress_values,
    tell_scores,
    tell_time_left,
    warn_if_short,
)
from rlpips.training.settings import Settings
from rlpips.training.state import TrainingState, new_state
from rlpips.training.step import take_step
from rlpips.training.teachers import (
    ChosenByTeachers,
    TeacherTargets,
    choices,
    match_scale,
    measure_teachers,
)
from rlpips.training.triplet_batch import Triplets
from rlpips.training.validation import evenly_spaced, validate

_SAVE_EVERY = 60.0  # seconds between two records of the state within an epoch
_LOG_EVERY = 20  # steps in a row of the log
_TIMED = 5  # steps from which the length of a run is estimated
_EXAMPLES = 128  # triplets that set the floors and the weights of layers of pixels
_MOST_FAILED = 5  # steps in a row without finite numbers that end a run


def train(
    recipe: Recipe,
    data: Items,
    out: str | PathLike[str],
    *,
    validation: Items | None = None,
    teachers: Mapping[str, Metric] | None = None,
    settings: Settings | None = None,
    description: Mapping[str, Any] | None = None,
) -> Path:
    """Train a metric, or go on with a run that was interrupted.

    The state is saved every minute and after each epoch. Under `torchrun` each process computes its share of
    every step. The result is then the same except for rounding, for dropout, which each process draws for
    itself, and for the contrastive loss, whose other references come from the same process.

    Args:
        recipe: how to train.
        data: triplets, such as `rlpips.data.TwoAFC` or `rlpips.data.PhotoTriplets`. An item has `ref`, `p0`
            and `p1` `(3, H, W)` in [-1, 1], all of one size, `judge`, the share of people who chose `p1`, and
            `index`. If `judge` is NaN, the teachers choose.
        out: the run's folder. It is made, or it is that of the same run, which goes on. Beside the metric it
            keeps `run.json`, the tables `log.csv` and `scores.csv`, `state.safetensors` (a checkpoint of the
            metric so far, too), the teachers' distances and, with attacks and validation, pictures of
            attacked triplets (`samples`).
        validation: triplets to score the metric on, before training (epoch 0) and after each epoch: its
            accuracy, clean and under attack, and its inflation, the median distance from references to their
            attacked copies over the median distance of the triplets. If they have no judgements, the teachers
            choose.
        teachers: metrics to learn from, by name, on the device of `settings`. The first sets distances and
            their scale; all together choose the nearer image of a triplet without a judgement.
        settings: where and how to compute.
        description: what the data is, for the metadata of the metric. Another description is another run.

    Returns:
        The file of the trained metric, `OUT/metric.safetensors`, for `rlpips.LPIPS(weights=...)`.

    Raises:
        CheckpointError: the run's state is damaged.
        DatasetError: there are too few triplets, their sizes differ, or they have no judgements.
        MissingExtraError: TensorBoard is not installed (extra 'tensorboard').
        OSError: files cannot be written.
        RuntimeError: the loss or its gradient is not finite for five steps in a row, or a distance in
            validation is NaN. The message says how to go on in another folder. A single such step is left
            out, with a warning. The state that is saved is always finite.
        ValueError: arguments contradict each other, the folder holds something else, or another process
            trains in it.
    """
    settings, teachers = settings or Settings(), teachers or {}
    processes = Processes.current()
    count = len(data)  # type: ignore[arg-type]
    _check(recipe, count, validation, teachers, settings.parts * processes.count)
    about: dict[str, Any] = {
        "recipe": recipe.to_json(),
        "data": {**(description or {}), "count": count},
        "teachers": {name: metric_digest(metric) for name, metric in teachers.items()},
        "rlpips": __version__,
        "torch": str(torch.__version__),
    }
    folder = RunFolder(Path(out), about)
    with folder.opened() if processes.rank == 0 else contextlib.nullcontext():
        processes.barrier()
        path = _run(recipe, data, validation, teachers, settings, folder)
        processes.barrier()
    return path


def _check(
    recipe: Recipe, count: int, validation: Items | None, teachers: Mapping[str, Metric], pieces: int
) -> None:
    """Refuse what does not fit together, of a step that is computed in so many pieces."""
    if count < recipe.batch:
        raise DatasetError(f"{count} triplets are too few for a batch of {recipe.batch}")
    if recipe.batch % pieces:
        raise ValueError(f"a batch of {recipe.batch} does not divide among {pieces} processes and parts")
    if recipe.mode == "contrastive" and recipe.batch < 2 * pieces:
        raise ValueError("mode='contrastive' needs two triplets at once, in each process and part")
    if not teachers and (recipe.distill or recipe.distill_attacked):
        raise ValueError("distill needs teachers")
    if recipe.patience and validation is None:
        raise ValueError("patience needs triplets to validate on")


def _run(
    recipe: Recipe,
    data: Items,
    validation: Items | None,
    teachers: Mapping[str, Metric],
    settings: Settings,
    folder: RunFolder,
) -> Path:
    """Ask the teachers, take the steps that are left, and write the metric."""
    targets = None
    if teachers:
        data, validation, targets = _ask_teachers(recipe, data, validation, teachers, settings, folder)
    scale = 1.0 if targets is None else float(targets.log_distances.median().exp())
    some = collate([data[k] for k in range(min(_EXAMPLES, len(data)))])  # type: ignore[arg-type]
    state = new_state(recipe, scale, torch.device(settings.device), (some["ref"], some["p0"]))
    saved = folder.load_state()
    if saved is not None:
        try:
            state.load(saved)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise folder.damaged() from error
    if not state.out_of_patience(recipe.patience):
        _Loop(recipe, data, validation, targets, settings, folder, state).run()
    path = folder.path / "metric.safetensors"
    if Processes.current().rank == 0:
        metric = state.metric
        if state.best is not None:
            metric.load_state_dict(state.best)
        if targets is not None:
            match_scale(metric, data, targets.log_distances)
        metadata = {**folder.description, "steps": state.step, "scores": state.scores}
        checkpoints.save(path, metric.state_dict(), metadata)
        tell_scores(recipe, state.scores)
    return path


def _ask_teachers(
    recipe: Recipe,
    data: Items,
    validation: Items | None,
    teachers: Mapping[str, Metric],
    settings: Settings,
    folder: RunFolder,
) -> tuple[Items, Items | None, TeacherTargets]:
    """Return the triplets to train on as the teachers saw them, those to validate on, and the targets."""

    def measured(triplets: Items, what: Mapping[str, Any]) -> Tensor:
        return measure_teachers(
            teachers,
            triplets,
            folder.path / "teachers",
            {**folder.description["data"], **what},
            device=settings.device,
            workers=settings.workers,
            precision=recipe.precision,
        )

    if recipe.symmetries:
        data = TurnedTriplets(data, recipe.seed)
    logs = measured(data, {"turned": recipe.seed} if recipe.symmetries else {})
    if validation is not None:
        validation = evenly_spaced(validation, settings.validation_limit)
        if validation[0]["judge"].isnan().any():
            validation = ChosenByTeachers(validation, choices(measured(validation, {"validation": True})))
    return data, validation, TeacherTargets(logs[0], choices(logs))


class _Loop:
    """The steps of a run that are left, and what is written on the way."""

    def __init__(
        self,
        recipe: Recipe,
        data: Items,
        validation: Items | None,
        targets: TeacherTargets | None,
        settings: Settings,
        folder: RunFolder,
        state: TrainingState,
    ) -> None:
        self.recipe, self.data, self.validation, self.targets = recipe, data, validation, targets
        self.settings, self.folder, self.state = settings, folder, state
        self.processes = Processes.current()
        self.first = self.processes.rank == 0  # the process that writes
        self.per_epoch = len(data) // recipe.batch  # type: ignore[arg-type]
        self.total_steps = self.per_epoch * recipe.total_epochs
        self.whole = 60 * recipe.minutes if recipe.minutes else self.total_steps
        self.means = TermMeans()
        self.failed = 0  # steps in a row, until now, that were not finite
        self.started_step, self.started_seconds = state.step, state.seconds
        self.validation_seconds = 0.0  # how long the validation before the first step took
        self.step_began = self.saved_at = time.monotonic()
        self.board: TensorBoard | None = None

    @property
    def done(self) -> float:
        """How much of `whole` is done: seconds if the recipe gives minutes, else steps."""
        return self.state.seconds if self.recipe.minutes else self.state.step

    @property
    def epoch(self) -> int:
        """The number, from 1, of the epoch of the latest step."""
        return -(-self.state.step // self.per_epoch)

    def run(self) -> None:
        """Take the steps that are left.

        A step draws triplets, attacks them and descends the loss. After each epoch the metric is validated
        and the state is saved.
        """
        recipe, state = self.recipe, self.state
        if self.done >= self.whole:
            return
        if self.first and not recipe.minutes:
            warn_if_short(self.total_steps)
        if self.first and self.settings.tensorboard:
            self.board = TensorBoard(self.folder.path, state.step)
        model: nn.Module = state.loss
        if self.processes.count > 1:
            model = nn.parallel.DistributedDataParallel(state.loss)
        model.train()
        self._validate_untrained()
        schedule = LambdaLR(state.optimizer, self._rate_factor, last_epoch=state.step - 1)
        self.step_began = self.saved_at = time.monotonic()
        with self._progress() as bar:
            for triplets in self._triplets():
                rate = recipe.lr * self._rate_factor(state.step)
                self._take_step(model, triplets)
                self._count_step()
                schedule.step()
                bar.update(recipe.batch)
                finished = self.done >= self.whole
                epoch_ends = finished or not state.step % self.per_epoch
                if not epoch_ends and state.step % _LOG_EVERY:
                    continue
                means = self._write_row(rate)
                if means:
                    bar.set_postfix(progress_values(means))
                if epoch_ends:
                    self._validate()
                stops = epoch_ends and (finished or state.out_of_patience(recipe.patience))
                # Only right after a row, so that none is lost or counted twice. Not after a step that failed.
                due = not self.failed and (epoch_ends or time.monotonic() - self.saved_at > _SAVE_EVERY)
                if due or stops:
                    self._save()
                if stops:
                    break
                self.step_began = time.monotonic()
        if self.board is not None:
            self.board.close()

    def _progress(self) -> Any:
        """Return the bar of the run, which counts triplets."""
        batch = self.recipe.batch
        total = None if self.recipe.minutes else self.total_steps * batch
        initial, hidden = self.state.step * batch, not self.first
        return progress(self.folder.path.name, total=total, initial=initial, unit="triplet", hidden=hidden)

    def _triplets(self) -> Iterator[Triplets]:
        """Read the triplets of each step that is left: this process's share."""
        recipe, processes, device = self.recipe, self.processes, torch.device(self.settings.device)
        workers = self.settings.workers
        for batch in read_batches(recipe, self.data, self.state.step, self.per_epoch, workers, processes):
            yield to_triplets(batch, self.targets, recipe, self.state.step, device, processes)

    def _rate_factor(self, step: int) -> float:
        return rate_factor(self.recipe, step, self.done, self.whole)

    def _take_step(self, model: nn.Module, triplets: Triplets) -> None:
        """Take a step, or leave it out if it is not finite.

        Raises:
            RuntimeError: it is the fifth such step in a row.
        """
        number = self.state.step + 1
        try:
            self.means.add(take_step(self.recipe, model, self.state, triplets, self.settings.parts))
            self.failed = 0
        except FloatingPointError as error:
            self.failed += 1
            if self.failed == _MOST_FAILED:
                raise self._diverged(number, f"{error} for the {self.failed}th step in a row") from None
            if self.first:
                logger.warning("step %d is left out: %s", number, error)

    def _count_step(self) -> None:
        """Count a step and the time it took; after a few steps, tell how long the rest takes."""
        state, recipe = self.state, self.recipe
        state.step += 1
        state.seconds += time.monotonic() - self.step_began
        if recipe.minutes:
            state.seconds = self.processes.first(lambda: state.seconds)
        self.step_began = time.monotonic()
        if self.first and not recipe.minutes and state.step - self.started_step == _TIMED:
            each = (state.seconds - self.started_seconds) / _TIMED
            left = self.total_steps - state.step
            validations = recipe.total_epochs - state.step // self.per_epoch
            tell_time_left(left, self.total_steps, each * left + self.validation_seconds * validations)

    def _write_row(self, rate: float) -> dict[str, float]:
        """Sum up the steps since the last row of the log."""
        means = self.means.take(self.processes)
        row = {"step": self.state.step, "epoch": self.epoch, "lr": rate, **means}
        self.state.rows.append(row)
        if self.board is not None:
            self.board.add("train", row, self.state.step)
        return means

    def _validate_untrained(self) -> None:
        """Score the metric before the first step."""
        if self.validation is None or self.state.step:
            return
        before = time.monotonic()
        scores = validate(self.recipe, self.state.metric, self.validation, self.settings)
        self.state.scores = [{"epoch": 0, **scores}]
        self.validation_seconds = time.monotonic() - before

    def _validate(self) -> None:
        """Score the metric after an epoch, and keep its weights if it is the best so far."""
        if self.validation is None:
            return
        state = self.state
        picture = self.folder.path / "samples" / f"epoch-{self.epoch:02}.png" if self.first else None
        try:
            scores = validate(self.recipe, state.metric, self.validation, self.settings, picture)
        except UndefinedDistanceError as error:
            raise self._diverged(state.step, str(error)) from None
        if self.recipe.patience and scores["score"] > max((row["score"] for row in state.scores), default=-1):
            state.best = {k: v.detach().cpu().clone() for k, v in state.metric.state_dict().items()}
        state.scores.append({"epoch": self.epoch, **scores})
        if self.board is not None:
            self.board.add("validation", scores, state.step)

    def _save(self) -> None:
        """Write the state and the tables, in the first process."""
        if not self.first:
            return
        state = self.state
        if not all(parameter.isfinite().all() for parameter in state.loss.parameters()):
            raise self._diverged(state.step, "weights are not finite")
        self.folder.save_state(state.to_dict(), state.weights)
        self.folder.write_rows("log.csv", state.rows)
        self.folder.write_rows("scores.csv", state.scores)
        self.saved_at = time.monotonic()

    def _diverged(self, step: int, what: str) -> RuntimeError:
        """Return the error of a run that cannot go on, which says how to train on with a lower rate."""
        kept, options = "no step is kept. Train", f"--lr {self.recipe.lr / 10:g}"
        state_file = self.folder.state_file
        if state_file.exists():
            kept = f"{state_file} keeps an earlier step. Go on from it"
            options += f" --weights {state_file}" + " --train all" * (self.recipe.train == "scratch")
        return RuntimeError(
            f"step {step}: {what}; {kept} in another folder, with a lower lr ({options}); a lower clip or "
            "float32 may help, too"
        )
