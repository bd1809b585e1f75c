"""Training a metric on triplets: natural, adversarial or contrastive; resumable, on one process or several.

Everything random is drawn from the recipe's seed and the step's number alone, so a run that was killed and
resumed ends with the weights of one that was not, on the same machine.
"""

import contextlib
import copy
import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from rlpips._version import __version__
from rlpips.attacks.base import Attack
from rlpips.attacks.metrics import Metric, distances
from rlpips.attacks.objectives import PERTURB, Inflate
from rlpips.data.judgements import collate
from rlpips.errors import DatasetError, MissingExtraError, UndefinedDistanceError
from rlpips.evaluation.judgement_measurement import measure_2afc
from rlpips.evaluation.scores import accuracy, mean_of
from rlpips.hub import checkpoints
from rlpips.hub.digests import metric_digest
from rlpips.metric.lpips import LPIPS
from rlpips.system.processes import Processes
from rlpips.system.progress import progress
from rlpips.training.losses import TripletLoss, Triplets
from rlpips.training.recipe import Recipe
from rlpips.training.run_folder import RunFolder
from rlpips.training.sample_pictures import save_attacked_triplets
from rlpips.training.teachers import choices, teach

logger = logging.getLogger("rlpips.training")

_SAVE_EVERY = 60.0  # seconds between two records of the state within an epoch
_LOG_EVERY = 20  # steps that one row of the log sums up
_SAMPLES = 4  # triplets in a picture
_SCALED = 512  # triplets that fix the scale of distances
_FEW = 50  # steps, which are too few to gain much
_TIMED = 5  # steps from which the length of a run is estimated
_MOST_LOST = 5  # steps in a row without finite numbers that end a run

Items = Dataset[dict[str, Any]]
Lessons = tuple[Tensor, Tensor]  # log distances by the first teacher, `(N, 2)`, and choices by all, `(N,)`


@dataclass
class Settings:
    """What a run needs beside its recipe, and what may change when it is resumed.

    Attributes:
        device: where to train.
        workers: processes that read data.
        parts: in how many parts a step is computed, to save memory (gradient accumulation).
        validation_steps: gradient steps of the attack that validates, the recipe's (PGD for 'ssa'); 0: none.
        validation_limit: the most triplets that validate, evenly spaced over the data.
        tensorboard: also write TensorBoard's log.
    """

    device: str | torch.device = "cpu"
    workers: int = 0
    parts: int = 1
    validation_steps: int = 10
    validation_limit: int | None = None
    tensorboard: bool = False


def new_metric(recipe: Recipe) -> LPIPS:
    """Build the metric that a recipe trains, where it starts from.

    Raises:
        ValueError, CheckpointError, WeightsUnavailableError: as from `rlpips.LPIPS`.
    """
    arguments: dict[str, Any] = {
        "net": recipe.net,
        "pnet_tune": recipe.train != "heads",
        "use_dropout": recipe.dropout,
        "eval_mode": False,
        "check_range": False,
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        if recipe.train == "scratch":
            metric = LPIPS(pretrained=False, pnet_rand=True, **arguments)
        elif recipe.weights == "imagenet":
            metric = LPIPS(pretrained=False, **arguments)
        else:
            metric = LPIPS(weights=recipe.weights, **arguments)
    clamp_heads(metric)
    return metric


@torch.no_grad()
def clamp_heads(metric: LPIPS) -> None:
    """Keep the heads' weights from becoming negative, so that distances are none."""
    for lin in metric.lins:
        lin.channel_weights.clamp_(min=0)  # type: ignore[operator]


def new_optimizer(loss: TripletLoss, recipe: Recipe) -> torch.optim.Optimizer:
    """Make the optimizer of a recipe over what is trainable, in groups with a rate each."""
    biases = [p for name, p in loss.metric.net.named_parameters() if name.endswith("bias")]
    weights = [p for name, p in loss.metric.net.named_parameters() if not name.endswith("bias")]
    groups = [
        (weights, 1.0),
        (biases, recipe.bias_lr),
        (list(loss.metric.lins.parameters()), recipe.head_lr),
        ([] if loss.ranking is None else list(loss.ranking.parameters()), 1.0),
    ]
    trainable = [([p for p in parameters if p.requires_grad], factor) for parameters, factor in groups]
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": recipe.lr * factor, "factor": factor}
            for parameters, factor in trainable
            if parameters
        ],
        betas=(recipe.beta1, 0.999),
        weight_decay=recipe.weight_decay,
    )


def rate(recipe: Recipe, step: int, done: float, whole: float) -> float:
    """Return the learning rate of a step, in units of the recipe's.

    Args:
        recipe: the recipe.
        step: the step's number, from 0, for the warm-up, which takes a fifth of the run at most.
        done: how much of the run is done, in steps or seconds.
        whole: how long the run is, in the same unit.

    >>> [round(rate(Recipe(epochs=1, decay_epochs=2), step, step, 30), 2) for step in (0, 10, 20)]
    [1.0, 1.0, 0.5]
    """
    rise = min(1.0, max((step + 1) / recipe.warmup, 5 * done / whole)) if recipe.warmup else 1.0
    if recipe.schedule == "cosine":
        return rise * (1 + math.cos(math.pi * min(done, whole) / whole)) / 2
    late = min(int(done * recipe.total_epochs // whole), recipe.total_epochs - 1) - recipe.epochs
    return rise * (1 - max(0, late) / max(1, recipe.decay_epochs))


@dataclass
class _State:
    """All that changes while a run goes on."""

    loss: TripletLoss
    optimizer: torch.optim.Optimizer
    average: LPIPS | None
    step: int = 0
    seconds: float = 0.0  # that steps took
    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None  # of the metric, where patience keeps the best

    @property
    def metric(self) -> LPIPS:
        """The metric that the run would end with now."""
        return self.loss.metric if self.average is None else self.average

    @property
    def weights(self) -> dict[str, Tensor]:
        """The state dict of the metric that is kept: the best, or that of now."""
        return self.metric.state_dict() if self.best is None else self.best

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as tensors and plain containers."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "rows": self.rows,
            "scores": self.scores,
            "best": self.best,
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go back to what `to_dict` returned."""
        self.loss.load_state_dict(saved["loss"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.step, self.rows, self.scores = saved["step"], saved["rows"], saved["scores"]
        self.best = saved["best"]
        self.seconds = saved.get("seconds", 0.0)

    def stale(self, patience: int) -> bool:
        """Whether the last `patience` scores brought no better one."""
        values = [row["score"] for row in self.scores if row["epoch"]]
        return (
            bool(patience) and len(values) > patience and max(values[-patience:]) <= max(values[:-patience])
        )


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

    The state is kept every minute, and after each epoch. Under `torchrun` each process computes its share of
    every step, and what comes out is the same but for rounding (and dropout, which each process draws for
    itself, and the contrastive loss, which takes other references from the same process).

    Args:
        recipe: how to train.
        data: triplets, such as `rlpips.TwoAFC` or `rlpips.triplets.PhotoTriplets`: items with `ref`, `p0` and
            `p1` `(3, H, W)` in [-1, 1], all of one size, `judge`, the share that chose `p1`, and `index`.
            Where `judge` is NaN, the image that the teachers think nearer counts as chosen.
        out: the run's folder: made, or the one of the same run that was interrupted. Beside the metric it
            keeps `run.json`, the tables `log.csv` and `scores.csv`, `state.safetensors`, a checkpoint
            of the metric so far, the teachers' distances and, where there are attacks and triplets to
            validate on, pictures of attacked ones (`samples`).
        validation: triplets that scores are measured on, before training (epoch 0) and after each epoch: the
            accuracy, as they are and under attack, and the inflation, the median distance of attacked
            references to themselves over that of the triplets' distorted images. What has no judgement is
            judged by the teachers.
        teachers: metrics to learn from, by name, on the device of `settings`: the first gives distances and
            the scale, and all together judge what nobody has.
        settings: where and how fast.
        description: what the data is, for the metadata of the metric; another one is another run.

    Returns:
        The file of the trained metric, `OUT/metric.safetensors`, which `rlpips.LPIPS(weights=...)` takes.

    Raises:
        CheckpointError: the run's state is damaged.
        DatasetError: the data are too few, differ in size, or lack judgements.
        MissingExtraError: TensorBoard is not installed (extra 'tensorboard').
        OSError: files cannot be written.
        RuntimeError: the loss or its gradient is not finite for several steps in a row, or distances to
            validate on are NaN; the message says how to go on in another folder. A single such step is left
            out, with a warning; no such step reaches the state that is kept.
        ValueError: arguments do not fit, the folder holds something else, or another process trains in it.
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
    run = RunFolder(Path(out), about)
    with run.opened() if processes.rank == 0 else contextlib.nullcontext():
        _meet(processes)
        path = _run(recipe, data, validation, teachers, settings, run)
        _meet(processes)
    return path


def _run(
    recipe: Recipe,
    data: Items,
    validation: Items | None,
    teachers: Mapping[str, Metric],
    settings: Settings,
    run: RunFolder,
) -> Path:
    """Ask the teachers, take the steps that are left, and write the metric."""
    device, about = torch.device(settings.device), run.description
    lessons = None
    if teachers:
        content = about["data"]
        if recipe.symmetries:
            data, content = _Turned(data, recipe.seed), {**content, "turned": recipe.seed}
        logs = teach(
            teachers,
            data,
            run.path / "teachers",
            content,
            device=device,
            workers=settings.workers,
            precision=recipe.precision,
        )
        lessons = logs[0], choices(logs)
        if validation is not None:
            validation = _spread(validation, settings.validation_limit)
            if validation[0]["judge"].isnan().any():
                content = {**about["data"], "validation": True}
                answers = teach(
                    teachers,
                    validation,
                    run.path / "teachers",
                    content,
                    device=device,
                    workers=settings.workers,
                    precision=recipe.precision,
                )
                validation = _Judged(validation, choices(answers))
    state = _new_state(recipe, lessons, device)
    saved = run.load_state()
    if saved is not None:
        try:
            state.load(saved)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise run.damaged() from error
    if not state.stale(recipe.patience):
        _climb(recipe, data, validation, lessons, settings, run, state, device)
    path = run.path / "metric.safetensors"
    if Processes.current().rank == 0:
        metric = state.metric
        if state.best is not None:
            metric.load_state_dict(state.best)
        if lessons is not None:
            rescale(metric, data, lessons[0])
        metadata = {**about, "steps": state.step, "scores": state.scores}
        checkpoints.save(path, metric.state_dict(), metadata)
        _tell_scores(recipe, state.scores)
    return path


@torch.no_grad()
def rescale(metric: LPIPS, data: Items, wanted: Tensor) -> None:
    """Multiply the heads so that the median ratio of distances to those wanted is 1, which moves no ranking.

    Args:
        metric: the metric; it is put into eval mode.
        data: triplets, of which up to `_SCALED` are measured.
        wanted: log distances of `p0` and `p1` to `ref`, `(len(data), 2)`.
    """
    metric.eval()
    rows = range(0, len(wanted), -(-len(wanted) // _SCALED))
    device = metric.like.device
    own = []
    for batch in DataLoader(Subset(data, rows), 32, collate_fn=collate):
        ref, p0, p1 = (batch[name].to(device) for name in ("ref", "p0", "p1"))
        own.append(torch.stack([distances(metric, p0, ref), distances(metric, p1, ref)], dim=1).cpu())
    ratio = wanted[list(rows)].exp() / torch.cat(own).clamp(min=1e-6)
    for lin in metric.lins:
        lin.channel_weights.mul_(ratio.median())  # type: ignore[operator]


def _meet(processes: Processes) -> None:
    if processes.count > 1:
        torch.distributed.barrier()


def _check(
    recipe: Recipe, count: int, validation: Items | None, teachers: Mapping[str, Metric], pieces: int
) -> None:
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


def _new_state(recipe: Recipe, lessons: Lessons | None, device: torch.device) -> _State:
    metric = new_metric(recipe)
    scale = 1.0 if lessons is None else float(lessons[0].median().exp())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        loss = TripletLoss(metric, recipe, scale).to(device)
    average = copy.deepcopy(metric).requires_grad_(False).eval() if recipe.ema else None
    return _State(loss, new_optimizer(loss, recipe), average)


def _climb(
    recipe: Recipe,
    data: Items,
    validation: Items | None,
    lessons: Lessons | None,
    settings: Settings,
    run: RunFolder,
    state: _State,
    device: torch.device,
) -> None:
    """Take the steps that are left."""
    processes = Processes.current()
    first = processes.rank == 0
    per_epoch = len(data) // recipe.batch  # type: ignore[arg-type]
    model: nn.Module = state.loss
    if processes.count > 1:
        model = nn.parallel.DistributedDataParallel(state.loss)
    model.train()
    total = per_epoch * recipe.total_epochs
    whole = 60 * recipe.minutes if recipe.minutes else total

    def done() -> float:
        return state.seconds if recipe.minutes else state.step

    if done() >= whole:
        return
    if first and not recipe.minutes and total < _FEW:
        logger.warning(
            "this run takes %d steps; some hundreds gain more: raise the epochs, the number of triplets, or "
            "the minutes",
            total,
        )
    board = _board(run.path, state.step) if settings.tensorboard and first else None
    validating = 0.0
    if validation is not None and not state.step:
        before = time.monotonic()
        state.scores = [{"epoch": 0, **_validate(recipe, state, validation, settings, device, None)}]
        validating = time.monotonic() - before
    began = saved_at = time.monotonic()
    started = state.step, state.seconds
    sums: dict[str, Tensor] = {}
    summed = lost = 0
    with progress(
        run.path.name,
        total=None if recipe.minutes else total * recipe.batch,
        initial=state.step * recipe.batch,
        unit="triplet",
        hidden=not first,
    ) as bar:
        for batch in _batches(recipe, data, state.step, per_epoch, settings.workers, processes):
            factor = rate(recipe, state.step, done(), whole)
            for group in state.optimizer.param_groups:
                group["lr"] = recipe.lr * group["factor"] * factor
            triplets = _triplets(batch, lessons, recipe, state.step, device, processes)
            try:
                for name, value in _step(recipe, model, state, triplets, settings.parts).items():
                    sums[name] = sums.get(name, 0) + value
                summed, lost = summed + 1, 0
            except FloatingPointError as error:
                lost += 1
                if lost == _MOST_LOST:
                    what = f"{error} for the {lost}th step in a row"
                    raise _diverged(run, recipe, state.step + 1, what) from None
                if first:
                    logger.warning("step %d is left out: %s", state.step + 1, error)
            state.step += 1
            state.seconds += time.monotonic() - began
            if recipe.minutes:
                state.seconds = processes.first(lambda: state.seconds)
            began = time.monotonic()
            bar.update(recipe.batch)
            epoch, left = divmod(state.step, per_epoch)
            if first and state.step - started[0] == _TIMED and not recipe.minutes:
                each = (state.seconds - started[1]) / _TIMED
                ends = recipe.total_epochs - state.step // per_epoch
                logger.info(
                    "%d of %d steps are left, which take about %s",
                    total - state.step,
                    total,
                    _duration(each * (total - state.step) + validating * ends),
                )
            ended = done() >= whole
            epoch, left = (epoch + 1, 0) if ended and left else (epoch, left)
            if left and state.step % _LOG_EVERY:
                continue
            means = _means(sums, summed, processes) if summed else {}
            sums, summed = {}, 0
            state.rows.append(
                {"step": state.step, "epoch": epoch + bool(left), "lr": recipe.lr * factor, **means}
            )
            if means:
                bar.set_postfix(_shown(means))
            _note(board, "train", state.rows[-1], state.step)
            if not left and validation is not None:
                picture = run.path / "samples" / f"epoch-{epoch:02}.png" if first else None
                try:
                    scores = _validate(recipe, state, validation, settings, device, picture)
                except UndefinedDistanceError as error:
                    raise _diverged(run, recipe, state.step, str(error)) from None
                if recipe.patience and scores["score"] > max((s["score"] for s in state.scores), default=-1):
                    state.best = {k: v.detach().cpu().clone() for k, v in state.metric.state_dict().items()}
                state.scores.append({"epoch": epoch, **scores})
                _note(board, "validation", scores, state.step)
            over = not left and (ended or state.stale(recipe.patience))
            # only between rows, so that none is lost or counted twice; not with weights that just failed
            due = not lost and (not left or time.monotonic() - saved_at > _SAVE_EVERY)
            if first and (due or over):
                if not all(parameter.isfinite().all() for parameter in state.loss.parameters()):
                    raise _diverged(run, recipe, state.step, "weights are not finite")
                run.save_state(state.to_dict(), state.weights)
                run.write_rows("log.csv", state.rows)
                run.write_rows("scores.csv", state.scores)
                saved_at = time.monotonic()
            if over:
                break
            began = time.monotonic()
    if board is not None:
        board.close()


def _diverged(run: RunFolder, recipe: Recipe, step: int, what: str) -> RuntimeError:
    """Return the error of a run that cannot go on."""
    kept, options = "no step is kept. Train", f"--lr {recipe.lr / 10:g}"
    if run.state_file.exists():
        kept = f"{run.state_file} keeps an earlier step. Go on from it"
        options += f" --weights {run.state_file}" + " --train all" * (recipe.train == "scratch")
    return RuntimeError(
        f"step {step}: {what}; {kept} in another folder, with a lower lr ({options}); a lower clip, or "
        "float32, may help, too"
    )


def _duration(seconds: float) -> str:
    """Write a time for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 100 * 60 else f"{seconds / 3600:.1f} hours"


def _tell_scores(recipe: Recipe, scores: list[dict[str, Any]]) -> None:
    """Tell how the metric was before training, and how the one is that is kept."""
    trained = [row for row in scores if row["epoch"]]
    if not trained or scores[0]["epoch"]:
        return
    kept = max(trained, key=lambda row: row["score"]) if recipe.patience else trained[-1]
    for when, row in (("before", scores[0]), ("after", kept)):
        shares = {name: f"{value:.3f}" for name, value in row.items() if name in ("natural", *PERTURB)}
        attacked = "".join(f", {share} with {name} attacked" for name, share in list(shares.items())[1:])
        inflation = f"; inflation {row['inflation']:.3f}" if "inflation" in row else ""
        logger.info("%s: accuracy %s%s%s", when, shares["natural"], attacked, inflation)


class _Judged(Dataset[dict[str, Any]]):
    """Triplets with the teachers' choices."""

    def __init__(self, data: Items, chosen: Tensor) -> None:
        self._data, self._chosen = data, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._data[index], "judge": self._chosen[index].view(1, 1, 1)}


def _shown(means: Mapping[str, float]) -> dict[str, str]:
    """Return what the progress bar says: of attacked triplets, the share on which the metric errs."""
    shown = {"loss": means["loss"]}
    if "accuracy" in means:
        shown["accuracy"] = means["accuracy"]
    if "attacked_accuracy" in means:
        shown["attack success"] = 1 - means["attacked_accuracy"]
    return {name: f"{value:.3f}" for name, value in shown.items()}


def _note(board: Any, section: str, values: Mapping[str, float], step: int) -> None:
    """Write numbers to TensorBoard's log, if there is one."""
    if board is not None:
        for name, value in values.items():
            board.add_scalar(f"{section}/{name}", value, step)


def _batches(
    recipe: Recipe, data: Items, start: int, per_epoch: int, workers: int, processes: Processes
) -> Iterator[dict[str, Any]]:
    """Read this process's share of every step's batch, from a step on."""

    def rows() -> Iterator[list[int]]:
        epochs = itertools.count() if recipe.minutes else range(recipe.total_epochs)
        for epoch in itertools.islice(epochs, start // per_epoch, None):
            order = np.random.default_rng((recipe.seed, epoch)).permutation(len(data))  # type: ignore[arg-type]
            first = start - epoch * per_epoch if epoch == start // per_epoch else 0
            for k in range(first, per_epoch):
                batch = order[k * recipe.batch : (k + 1) * recipe.batch]
                yield batch[processes.rank :: processes.count].tolist()

    return iter(DataLoader(data, batch_sampler=rows(), num_workers=workers, collate_fn=collate))


def _triplets(
    batch: Mapping[str, Any],
    lessons: Lessons | None,
    recipe: Recipe,
    step: int,
    device: torch.device,
    processes: Processes,
) -> Triplets:
    images = [batch[name] for name in ("ref", "p0", "p1")]
    numbers = torch.arange(processes.rank, recipe.batch, processes.count)
    if recipe.symmetries and lessons is None:  # what teachers have seen is turned already
        draws = np.random.default_rng((recipe.seed, step, 1)).integers((4, 2), size=(recipe.batch, 2))
        turns = draws[numbers]
        images = [
            torch.stack([_turn(image, *map(int, turn)) for image, turn in zip(each, turns, strict=True)])
            for each in images
        ]
    judge = batch["judge"].flatten().float()
    wanted = None
    if lessons is not None:
        wanted, chosen = (each[batch["index"]] for each in lessons)
        judge = torch.where(judge.isnan(), chosen, judge)
    if judge.isnan().any():
        raise DatasetError("the triplets have no judgements, and there are no teachers")
    ref, x0, x1, judge, numbers = (each.contiguous().to(device) for each in (*images, judge, numbers))
    wanted = None if wanted is None else wanted.to(device)
    other = _next(ref, processes) if recipe.attack == "ssa" else ref
    return Triplets(ref, x0, x1, judge, wanted, other, numbers, recipe.batch)


class _Turned(Dataset[dict[str, Any]]):
    """Triplets, each turned and mirrored at random, always in the same way, for teachers and the metric.

    The distances of LPIPS change by a tenth when images are turned, so one answer does not serve all turns.
    """

    def __init__(self, data: Items, seed: int) -> None:
        self._data, self._seed = data, seed

    def __len__(self) -> int:
        return len(self._data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self._data[index]
        turn, mirror = map(int, np.random.default_rng((self._seed, item["index"], 3)).integers((4, 2)))
        return {**item, **{name: _turn(item[name], turn, mirror) for name in ("ref", "p0", "p1")}}


def _turn(image: Tensor, turn: int, mirror: int) -> Tensor:
    """Turn an image `(3, H, W)` by right angles, two at a time where it is no square, and mirror it."""
    if image.shape[-2] != image.shape[-1]:
        turn = turn // 2 * 2
    turned = torch.rot90(image, turn, (-2, -1))
    return turned.flip(-1) if mirror else turned


def _next(ref: Tensor, processes: Processes) -> Tensor:
    """Return the references of the next triplets of the step, which other processes may have."""
    every = [ref]
    if processes.count > 1:
        every = [torch.empty_like(ref) for _ in range(processes.count)]
        torch.distributed.all_gather(every, ref)
    return torch.stack(every, dim=1).flatten(0, 1).roll(-1, dims=0)[processes.rank :: processes.count]


def _step(
    recipe: Recipe, model: nn.Module, state: _State, triplets: Triplets, parts: int
) -> dict[str, Tensor]:
    """Take one step, and return this process's terms of the loss.

    Raises:
        FloatingPointError: the loss or its gradient is not finite, in any process; nothing has changed.
    """
    rng = np.random.default_rng((recipe.seed, state.step, 2))
    eps = recipe.eps * float(rng.uniform(*recipe.eps_range))
    attack = recipe.make_attack(eps, int(rng.integers(2**31)))
    processes = Processes.current()
    terms: dict[str, Tensor] = {}
    defined = True
    state.optimizer.zero_grad()
    for part in range(parts):
        some = triplets[slice(part, None, parts)] if parts > 1 else triplets
        try:
            attacked = state.loss.attack(some, attack)
        except UndefinedDistanceError:  # the other processes wait for the gradients of this one
            attacked, defined = [], False
        last = part == parts - 1
        apart = contextlib.nullcontext() if last or processes.count == 1 else model.no_sync()  # type: ignore[operator]
        devices = [some.ref.device.index or 0] if some.ref.is_cuda else []
        with apart, torch.random.fork_rng(devices):  # dropout draws from the global generator
            torch.manual_seed(int(rng.integers(2**31)) + processes.rank)
            found = model(some, attacked)
            # gradients are averaged over processes, where those of all parts of a step add up
            (found["loss"] * processes.count).backward()
        for name, value in found.items():
            terms[name] = terms.get(name, 0) + value.detach()
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    length = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
    finite = torch.stack([terms["loss"].isfinite() & defined, length.isfinite()]).int()
    if processes.count > 1:
        torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
    for name, good in zip(("loss", "gradient"), finite.tolist(), strict=True):
        if not good:
            raise FloatingPointError(f"the {name} is not finite")
    state.optimizer.step()
    clamp_heads(state.loss.metric)
    if state.average is not None:
        decay = min(recipe.ema, (state.step + 1) / (state.step + 10))  # young averages forget their start
        with torch.no_grad():
            for mean, own in zip(state.average.parameters(), state.loss.metric.parameters(), strict=True):
                mean.lerp_(own, 1 - decay)
    return terms


def _means(sums: Mapping[str, Tensor], steps: int, processes: Processes) -> dict[str, float]:
    """Average the terms of some steps, over all processes."""
    values = torch.stack(list(sums.values()))
    values = (values if values.device.type == "mps" else values.double()) / steps  # which has no float64
    if processes.count > 1:
        torch.distributed.all_reduce(values)
    return dict(zip(sums, values.tolist(), strict=True))


def _validate(
    recipe: Recipe,
    state: _State,
    validation: Items,
    settings: Settings,
    device: torch.device,
    picture: Path | None,
) -> dict[str, float]:
    """Score the metric on triplets, as they are and attacked in each way that the recipe knows.

    A picture, where one is wanted, shows some of them attacked in the first of these ways.
    """
    metric, training = state.metric, state.metric.training
    metric.eval()
    limit = settings.validation_limit
    targets = [perturb for perturb in recipe.perturb if perturb != "self"]
    if recipe.mode == "natural" or not settings.validation_steps:
        targets = []
    kind = "linf" if recipe.attack == "ssa" else recipe.attack
    stronger = dataclasses.replace(recipe, attack=kind, steps=settings.validation_steps or 1, step_size=None)
    attack = stronger.make_attack(recipe.eps, 0)
    scores = {}
    for name, perturb in [("natural", None), *((target, target) for target in targets)]:
        columns = measure_2afc(
            metric,
            _spread(validation, limit),  # type: ignore[arg-type]
            attack if perturb else None,
            perturb or "x0",
            device=device,
        )
        scores[name] = mean_of(accuracy)(*columns)
        if perturb is None:
            ordinary = float(np.median(np.concatenate(columns[:2])))
    if targets:
        pushed = _pushed(metric, _spread(validation, limit), attack, device)
    if targets and picture is not None:
        some = _spread(validation, _SAMPLES)
        examples = [some[i] for i in range(len(some))]
        save_attacked_triplets(picture, metric, examples, attack, targets[0], device)
    metric.train(training)
    natural, *attacked = scores.values()
    score = (natural + float(np.mean(attacked))) / 2 if attacked else natural
    if targets:
        scores["inflation"] = pushed / ordinary if ordinary else math.inf
    return {"score": score, **scores}


def _pushed(metric: LPIPS, data: Items, attack: Attack, device: torch.device) -> float:
    """Return the median distance of references to themselves, attacked."""
    processes, own = Processes.current(), {}
    for number, rows in processes.batches(len(data), 32):  # type: ignore[arg-type]
        ref = torch.stack([data[i]["ref"] for i in rows]).to(device)
        objective = Inflate(metric, ref)
        attacked = attack(objective, ref, rows)
        with torch.no_grad():
            own[number] = objective(attacked, torch.arange(len(rows), device=device)).cpu()
    return float(torch.cat(processes.gather(own)).median())


def _spread(data: Items, limit: int | None) -> Subset[dict[str, Any]]:
    """Take so many items at most, evenly spaced, as data sets list one subset after the other."""
    count = len(data)  # type: ignore[arg-type]
    taken = min(count, limit or count)
    return Subset(data, [i * count // taken for i in range(taken)])


def _board(folder: Path, step: int) -> Any:
    """Open TensorBoard's log, dropping what an interrupted run wrote after its last state."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("writing TensorBoard's log", "tensorboard") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
