"""Training a metric on triplets: natural, adversarial or contrastive; resumable, on one process or several.

Everything random is drawn from the recipe's seed and the step's number alone, so a run that was killed and
resumed ends with the weights of one that was not, on the same machine.
"""

import contextlib
import copy
import csv
import dataclasses
import io
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import rlpips
from rlpips import checkpoints
from rlpips.errors import DatasetError, MissingExtraError
from rlpips.evaluation import accuracy, mean_of, measure_2afc
from rlpips.files import write_atomically
from rlpips.losses import TripletLoss, Triplets
from rlpips.metric import LPIPS
from rlpips.processes import Processes
from rlpips.recipes import Recipe
from rlpips.teachers import choices

_SAVE_EVERY = 60.0  # seconds between two records of the state
_LOG_EVERY = 20  # steps that one row of the log sums up

Items = Dataset[dict[str, Any]]


@dataclass
class Settings:
    """What a run needs beside its recipe, and what may change when it is resumed.

    Attributes:
        device: where to train.
        workers: processes that read data.
        parts: in how many parts a step is computed, to save memory (gradient accumulation).
        validation_attack: gradient steps of the PGD attack, with the recipe's `eps`, that validates; 0 none.
        validation_limit: the most triplets that validate.
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
        lin.weight.clamp_(min=0)  # type: ignore[operator]


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


def rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, in units of the recipe's.

    >>> [round(rate(Recipe(epochs=1, decay_epochs=2), step, 10), 2) for step in (0, 10, 20)]
    [1.0, 1.0, 0.5]
    """
    rise = min(1.0, (step + 1) / recipe.warmup) if recipe.warmup else 1.0
    if recipe.schedule == "cosine":
        return rise * (1 + math.cos(math.pi * step / (steps_per_epoch * recipe.total_epochs))) / 2
    late = step // steps_per_epoch - recipe.epochs
    return rise * (1 - max(0, late) / max(1, recipe.decay_epochs))


class _Run:
    """A run's folder: `run.json`, `log.csv`, `scores.csv`, `state.pth`, and at the end `metric.pth`."""

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self.folder = folder
        self.description = description

    def open(self) -> dict[str, Any] | None:
        """Make the folder, or check that what lies there is this run; return the state to go on from.

        Raises:
            ValueError: another run lies there, or something else.
        """
        path = self.folder / "run.json"
        if path.exists():
            there = json.loads(path.read_text(encoding="utf-8"))
            changed = [
                f"{section}.{key} was {there.get(section, {}).get(key)!r} and is now {value!r}"
                for section in ("recipe", "data")
                for key, value in self.description[section].items()
                if there.get(section, {}).get(key) != value
            ]
            if changed:
                raise ValueError(
                    f"{self.folder} holds another run: {'; '.join(changed)}. "
                    "Use the same recipe and data to go on with it, or another folder"
                )
        elif self.folder.exists() and any(each.name != "teachers" for each in self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty, and holds no run")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, (json.dumps(self.description, indent=2) + "\n").encode())
        state = self.folder / "state.pth"
        if not state.exists():
            return None
        loaded: dict[str, Any] = checkpoints.load(state)
        return loaded

    def save(self, state: dict[str, Any]) -> None:
        """Write the state, whole or not at all."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.folder / "state.pth", buffer.getvalue())

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a table as CSV; its columns are those of all rows."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.folder / name, text.getvalue().encode())


@dataclass
class _State:
    """All that changes while a run goes on."""

    loss: TripletLoss
    optimizer: torch.optim.Optimizer
    average: LPIPS | None
    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None  # of the metric, where patience keeps the best

    @property
    def metric(self) -> LPIPS:
        """The metric that the run would end with now."""
        return self.loss.metric if self.average is None else self.average

    def to_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "rows": self.rows,
            "scores": self.scores,
            "best": self.best,
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        self.loss.load_state_dict(saved["loss"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.step, self.rows, self.scores = saved["step"], saved["rows"], saved["scores"]
        self.best = saved["best"]

    def stale(self, patience: int) -> bool:
        """Whether the last `patience` scores brought no better one."""
        values = [row["score"] for row in self.scores]
        return (
            bool(patience) and len(values) > patience and max(values[-patience:]) <= max(values[:-patience])
        )


def train(
    recipe: Recipe,
    data: Items,
    out: str | PathLike[str],
    *,
    validation: Items | None = None,
    teachers: Tensor | None = None,
    settings: Settings | None = None,
    description: Mapping[str, Any] | None = None,
) -> Path:
    """Train a metric, or go on with a run that was interrupted.

    Under `torchrun` each process computes its share of every step, and what comes out is the same but for
    rounding (and dropout, which each process draws for itself).

    Args:
        recipe: how to train.
        data: triplets, such as `rlpips.TwoAFC` or `rlpips.triplets.PhotoTriplets`: items with `ref`, `p0` and
            `p1` `(3, H, W)` in [-1, 1], all of one size, `judge`, the share that chose `p1`, and `index`.
            Where `judge` is NaN, the image that the teachers think nearer counts as chosen.
        out: the run's folder: made, or the one of the same run that was interrupted.
        validation: triplets that scores are measured on, after each epoch.
        teachers: what `rlpips.teachers.teach` returned: log distances by metrics to learn from, of which the
            first gives distances, and all together judge what nobody has.
        settings: where and how fast.
        description: what the data is, for the metadata of the metric; another one is another run.

    Returns:
        The file of the trained metric, `OUT/metric.pth`, which `rlpips.LPIPS(weights=...)` takes.

    Raises:
        CheckpointError: the run's state is damaged.
        DatasetError: the data are too few, or differ in size.
        OSError: files cannot be written.
        ValueError: arguments do not fit, or the folder holds something else.
    """
    settings = settings or Settings()
    processes = Processes.current()
    count = len(data)  # type: ignore[arg-type]
    _check(recipe, count, validation, teachers, settings.parts * processes.count)
    about = {
        **(description or {}),
        "count": count,
        "learned": None if teachers is None else _digest(teachers),
    }
    run = _Run(Path(out), {"recipe": recipe.to_json(), "data": about, "rlpips": rlpips.__version__})
    device = torch.device(settings.device)
    state = _new_state(recipe, teachers, device)
    saved = run.open() if processes.rank == 0 else None
    if processes.count > 1:
        torch.distributed.barrier()
        saved = run.open()
    if saved is not None:
        state.load(saved)
    if not state.stale(recipe.patience):
        _climb(recipe, data, validation, teachers, settings, run, state, device)
    path = run.folder / "metric.pth"
    if processes.rank == 0:
        metadata = {
            **run.description,
            "torch": str(torch.__version__),
            "steps": state.step,
            "scores": state.scores,
        }
        checkpoints.save(path, state.best or state.metric.state_dict(), metadata)
    if processes.count > 1:
        torch.distributed.barrier()
    return path


def _check(
    recipe: Recipe, count: int, validation: Items | None, teachers: Tensor | None, pieces: int
) -> None:
    if count < recipe.batch:
        raise DatasetError(f"{count} triplets are too few for a batch of {recipe.batch}")
    if recipe.batch % pieces:
        raise ValueError(f"a batch of {recipe.batch} does not divide among {pieces} processes and parts")
    if teachers is not None and teachers.shape[1:] != (count, 2):
        raise ValueError(f"teachers must be of shape (T, {count}, 2), got {tuple(teachers.shape)}")
    if teachers is None and (recipe.distill or recipe.distill_attacked):
        raise ValueError("distill needs teachers")
    if recipe.patience and validation is None:
        raise ValueError("patience needs triplets to validate on")


def _digest(teachers: Tensor) -> str:
    return checkpoints.tensors_digest({"teachers": teachers})


def _new_state(recipe: Recipe, teachers: Tensor | None, device: torch.device) -> _State:
    metric = new_metric(recipe)
    scale = 1.0 if teachers is None else float(teachers[0].median().exp())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        loss = TripletLoss(metric, recipe, scale).to(device)
    average = copy.deepcopy(metric).requires_grad_(False).eval() if recipe.ema else None
    return _State(loss, new_optimizer(loss, recipe), average)


def _climb(
    recipe: Recipe,
    data: Items,
    validation: Items | None,
    teachers: Tensor | None,
    settings: Settings,
    run: _Run,
    state: _State,
    device: torch.device,
) -> None:
    """Take the steps that are left."""
    from tqdm import tqdm

    processes = Processes.current()
    lessons = None if teachers is None else (teachers[0], choices(teachers))
    per_epoch = len(data) // recipe.batch  # type: ignore[arg-type]
    total = per_epoch * recipe.total_epochs
    model: nn.Module = state.loss
    if processes.count > 1:
        model = nn.parallel.DistributedDataParallel(state.loss)
    model.train()
    board = _board(run.folder, state.step) if settings.tensorboard and processes.rank == 0 else None
    saved_at = time.monotonic()
    sums: dict[str, Tensor] = {}
    with tqdm(
        desc=run.folder.name,
        total=total * recipe.batch,
        initial=state.step * recipe.batch,
        unit="triplet",
        disable=None if processes.rank == 0 else True,
    ) as bar:
        for batch in _batches(recipe, data, state.step, per_epoch, settings.workers, processes):
            factor = rate(recipe, state.step, per_epoch)
            for group in state.optimizer.param_groups:
                group["lr"] = recipe.lr * group["factor"] * factor
            triplets = _triplets(batch, lessons, recipe, state.step, device, processes)
            terms = _step(recipe, model, state, triplets, settings.parts)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value
            state.step += 1
            bar.update(recipe.batch)
            if state.step % _LOG_EVERY == 0 or state.step == total:
                steps = (state.step - 1) % _LOG_EVERY + 1
                row: dict[str, Any] = {
                    "step": state.step,
                    "epoch": (state.step - 1) // per_epoch + 1,
                    "lr": recipe.lr * factor,
                }
                row |= _means(sums, steps, processes)
                sums = {}
                state.rows.append(row)
                bar.set_postfix(
                    {k: f"{row[k]:.3f}" for k in ("loss", "accuracy", "attacked_accuracy") if k in row}
                )
                if board is not None:
                    for name in row:
                        board.add_scalar(f"train/{name}", row[name], state.step)
            if state.step % per_epoch == 0 and validation is not None:
                scores = _validate(recipe, state, validation, settings, device)
                state.scores.append({"epoch": state.step // per_epoch, **scores})
                if recipe.patience and scores["score"] >= max(each["score"] for each in state.scores):
                    state.best = {k: v.detach().cpu().clone() for k, v in state.metric.state_dict().items()}
                if board is not None:
                    for name in scores:
                        board.add_scalar(f"validation/{name}", scores[name], state.step)
            stop = state.step % per_epoch == 0 and state.stale(recipe.patience)
            at_mark = not sums  # between rows, so that none is lost or counted twice
            if (
                processes.rank == 0
                and at_mark
                and (stop or state.step == total or time.monotonic() - saved_at > _SAVE_EVERY)
            ):
                run.save(state.to_dict())
                run.write_rows("log.csv", state.rows)
                run.write_rows("scores.csv", state.scores)
                saved_at = time.monotonic()
            if stop:
                break
    if board is not None:
        board.close()


def _batches(
    recipe: Recipe, data: Items, start: int, per_epoch: int, workers: int, processes: Processes
) -> Iterator[dict[str, Any]]:
    """Read this process's share of every step's batch, from a step on."""

    def rows() -> Iterator[list[int]]:
        for epoch in range(start // per_epoch, recipe.total_epochs):
            order = np.random.default_rng((recipe.seed, epoch)).permutation(len(data))  # type: ignore[arg-type]
            first = start - epoch * per_epoch if epoch == start // per_epoch else 0
            for k in range(first, per_epoch):
                batch = order[k * recipe.batch : (k + 1) * recipe.batch]
                yield batch[processes.rank :: processes.count].tolist()

    return iter(DataLoader(data, batch_sampler=rows(), num_workers=workers))


def _triplets(
    batch: Mapping[str, Any],
    lessons: tuple[Tensor, Tensor] | None,
    recipe: Recipe,
    step: int,
    device: torch.device,
    processes: Processes,
) -> Triplets:
    images = [batch[name] for name in ("ref", "p0", "p1")]
    if recipe.symmetries:
        turn, mirror = np.random.default_rng((recipe.seed, step, 1)).integers((4, 2))
        images = [torch.rot90(each, int(turn), (-2, -1)) for each in images]
        images = [each.flip(-1) for each in images] if mirror else images
    judge = batch["judge"].flatten().float()
    wanted = None
    if lessons is not None:
        wanted, chosen = (each[batch["index"]] for each in lessons)
        judge = torch.where(judge.isnan(), chosen, judge)
        wanted = wanted.to(device)
    if judge.isnan().any():
        raise DatasetError("the triplets have no judgements, and there are no teachers")
    numbers = torch.arange(processes.rank, recipe.batch, processes.count)
    ref, x0, x1, judge, numbers = (each.contiguous().to(device) for each in (*images, judge, numbers))
    return Triplets(ref, x0, x1, judge, wanted, numbers, recipe.batch)


def _step(
    recipe: Recipe, model: nn.Module, state: _State, triplets: Triplets, parts: int
) -> dict[str, Tensor]:
    """Take one step, and return this process's terms of the loss."""
    rng = np.random.default_rng((recipe.seed, state.step, 2))
    eps = recipe.eps * float(rng.uniform(*recipe.eps_range))
    attack = recipe.make_attack(eps, int(rng.integers(2**31)))
    processes = Processes.current()
    terms: dict[str, Tensor] = {}
    state.optimizer.zero_grad()
    for part in range(parts):
        some = triplets[slice(part, None, parts)] if parts > 1 else triplets
        attacked = state.loss.attack(some, attack)
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
    if math.isfinite(recipe.clip):
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
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
    values = torch.stack([value.double() for value in sums.values()]) / steps
    if processes.count > 1:
        torch.distributed.all_reduce(values)
    return dict(zip(sums, values.tolist(), strict=True))


def _validate(
    recipe: Recipe, state: _State, validation: Items, settings: Settings, device: torch.device
) -> dict[str, float]:
    """Score the metric on triplets, as they are and attacked in each way that the recipe knows."""
    metric, training = state.metric, state.metric.training
    metric.eval()
    cases: dict[str, Any] = {"natural": (None, "x0")}
    if recipe.mode != "natural" and settings.validation_steps:
        pgd = dataclasses.replace(recipe, attack="linf", steps=settings.validation_steps, step_size=None)
        cases |= {
            perturb: (pgd.make_attack(recipe.eps, 0), perturb)
            for perturb in recipe.perturb
            if perturb != "self"
        }
    scores = {}
    for name, (attack, perturb) in cases.items():
        columns = measure_2afc(
            metric,
            validation,  # type: ignore[arg-type]
            attack,
            perturb,
            device=device,
            limit=settings.validation_limit,
        )
        scores[name] = mean_of(accuracy)(*columns)
    metric.train(training)
    natural, *attacked = scores.values()
    return {"score": (natural + float(np.mean(attacked))) / 2 if attacked else natural, **scores}


def _board(folder: Path, step: int) -> Any:
    """Open TensorBoard's log, dropping what an interrupted run wrote after its last state."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("writing TensorBoard's log", "tensorboard") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
