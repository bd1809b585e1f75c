"""Attacks on metrics: searches within a budget for images on which an objective is large.

`attack(objective, x)` returns images of the shape and dtype of `x` that lie within the attack's budget around
`x` and within the range of images. For each image it keeps the best candidate it has met, not the last one,
`x` itself among them, and no longer computes on images that the objective calls finished. `eps` and
`step_size` are in units of the [0, 1] scale, whatever the images' range. Each image has a random stream of
its own, so results do not depend on how images are put into batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from rlpips.attacks.objectives import Metric, Objective, RankFlip, SemanticSimilarity, name_of
from rlpips.errors import UndefinedDistanceError

Norm = Literal["linf", "l2"]


class _Streams:
    """A random generator for each image, on the CPU, so that a device changes nothing."""

    def __init__(self, seed: int, numbers: Sequence[int]) -> None:
        # torch's generator on the CPU uses only 32 bits of a seed, so both numbers are mixed into those
        states = (np.random.SeedSequence((seed, number)).generate_state(1) for number in numbers)
        self._generators = [torch.Generator().manual_seed(int(state[0])) for state in states]

    def _draw(self, like: Tensor, index: Tensor, draw: str) -> Tensor:
        out = torch.empty(like.shape, dtype=torch.float32)
        for row, image in zip(out, index.tolist(), strict=True):
            getattr(row, draw)(generator=self._generators[image])
        return out.to(like)

    def uniform(self, like: Tensor, index: Tensor) -> Tensor:
        """Draw from [0, 1) in the shape of `like`, whose rows belong to the images `index`."""
        return self._draw(like, index, "uniform_")

    def normal(self, like: Tensor, index: Tensor) -> Tensor:
        """Draw from the standard normal distribution."""
        return self._draw(like, index, "normal_")


def _length(x: Tensor) -> Tensor:
    """Return the Euclidean length of each image `(..., 3, H, W)`, `(..., 1, 1, 1)`."""
    return x.square().sum(dim=(-3, -2, -1), keepdim=True).sqrt()


class _Ball:
    """The images within a budget around `x` and within the range of images."""

    def __init__(self, x: Tensor, norm: Norm, eps: float, bounds: tuple[float, float]) -> None:
        self.x, self.norm, self.eps, self.bounds = x, norm, eps, bounds

    def project(self, candidate: Tensor, index: Tensor) -> Tensor:
        """Return the nearest point of the ball, and of the range of images, to each candidate."""
        delta = candidate - self.x[index]
        if self.norm == "linf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            delta = delta * (self.eps / _length(delta).clamp(min=1e-12)).clamp(max=1)
        return (self.x[index] + delta).clamp(*self.bounds)

    def random(self, index: Tensor, streams: _Streams) -> Tensor:
        """Draw uniformly from the ball."""
        centre = self.x[index]
        if self.norm == "linf":
            return self.project(centre + self.eps * (2 * streams.uniform(centre, index) - 1), index)
        direction = streams.normal(centre, index)
        radius = streams.uniform(direction[..., :1, :1, :1], index) ** (1 / centre.shape[-3:].numel())
        return self.project(centre + self.eps * radius * direction / _length(direction), index)

    def direction(self, gradient: Tensor, index: Tensor, streams: _Streams) -> Tensor:
        """Return the steepest direction of length 1 in the norm; a random one where the gradient vanishes."""
        dead = (gradient == 0).flatten(1).all(dim=1)
        if dead.any():
            gradient = gradient.clone()
            gradient[dead] = streams.normal(gradient[dead], index[dead])
        return gradient.sign() if self.norm == "linf" else gradient / _length(gradient).clamp(min=1e-30)


class _Record:
    """The best candidate met for each image, and which images are not finished."""

    def __init__(self, objective: Objective, x: Tensor) -> None:
        self.goal = objective.goal
        self.best = x.clone()
        with torch.no_grad():
            self.value = objective(x, torch.arange(len(x), device=x.device)).detach()
        self.undefined = self.value.isnan()  # images for which some value was NaN, which is finished, too

    def unfinished(self) -> Tensor:
        """Return the numbers of the images that are not finished."""
        return (self.value <= self.goal).nonzero().flatten()

    def add(self, candidate: Tensor, value: Tensor, index: Tensor) -> Tensor:
        """Take note of candidates; return a mask of those whose images are not finished."""
        self.undefined[index] |= value.isnan()
        better = value > self.value[index]
        self.best[index[better]] = candidate[better].detach()
        self.value[index[better]] = value[better].detach()
        return self.value[index] <= self.goal


def _value_and_gradient(objective: Objective, candidate: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        candidate = candidate.detach().requires_grad_()
        value = objective(candidate, index)
        (gradient,) = torch.autograd.grad(value.sum(), candidate)
    # in the memory format of images again, which that of a metric's activations need not be
    return value.detach(), gradient.nan_to_num(0, 0, 0).contiguous()


class Attack:
    """What all attacks share: a budget, a number of steps, the range of images and a seed."""

    eps: float
    steps: int
    bounds: tuple[float, float]
    seed: int

    def __post_init__(self) -> None:
        if not self.eps >= 0 or self.eps == float("inf"):
            raise ValueError(f"eps={self.eps} must be finite and at least 0")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        for name in ("step_size", "momentum", "smoothness"):
            value: float | None = getattr(self, name, None)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must be finite and at least 0")

    def __call__(self, objective: Objective, x: Tensor, numbers: Sequence[int] | None = None) -> Tensor:
        """Search, from images `x`, for images on which the objective is large.

        Args:
            objective: what to pursue.
            x: `(N, 3, H, W)`, or what the objective asks for, within `bounds`, floating point.
            numbers: a number for each image, such as its position in a data set, which names its random
                stream; by default its position in the batch.

        Returns:
            Images of the same shape and dtype, within the budget around `x` and within `bounds`.

        Raises:
            UndefinedDistanceError: the objective was NaN for some image, which the error numbers.
            ValueError: `x` is not within `bounds`.
        """
        if x.numel() and not (x.min() >= self.bounds[0] and x.max() <= self.bounds[1]):
            raise ValueError(f"images must lie in {list(self.bounds)}, got [{x.min():.4g}, {x.max():.4g}]")
        start = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        record = _Record(objective, start)
        numbers = range(len(x)) if numbers is None else numbers
        self._search(objective, start, record, _Streams(self.seed, numbers))
        undefined = record.undefined.nonzero().flatten().tolist()  # looked at once, so that no step waits
        if undefined:
            number = numbers[undefined[0]]
            raise UndefinedDistanceError(
                f"{name_of(getattr(objective, 'metric', objective))} gives NaN for image {number}; "
                "an attack on it says nothing",
                number,
            )
        return record.best.to(x.dtype)

    @property
    def _span(self) -> float:
        return self.bounds[1] - self.bounds[0]

    def _search(self, objective: Objective, x: Tensor, record: _Record, streams: _Streams) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent (Madry et al. 2018, arXiv 1706.06083).

    One step without a random start and with `step_size=eps` is FGSM (Goodfellow et al. 2015); `momentum=1` is
    MI-FGSM (Dong et al. 2018, arXiv 1710.06081).

    Args:
        norm: 'linf' or 'l2', the latter over all pixels of one image.
        eps: radius of the ball, on the [0, 1] scale.
        steps: gradient steps of each restart, of one forward and one backward pass each.
        step_size: by default it falls linearly, from `eps` to `eps / steps`, which breaks more than one size.
        random_start: start anywhere in the ball instead of at `x`.
        restarts: how often to start.
        momentum: share of the earlier direction that is kept.
        bounds: the range of images.
        seed: of all that is random; the same seed gives the same result.

    Raises:
        ValueError: an argument is out of range.
    """

    norm: Norm
    eps: float
    steps: int
    step_size: float | None = None
    random_start: bool = True
    restarts: int = 1
    momentum: float = 0.0
    bounds: tuple[float, float] = field(default=(-1.0, 1.0), kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"norm={self.norm!r} is unknown; choose 'linf' or 'l2'")
        if self.restarts < 1:
            raise ValueError(f"restarts={self.restarts} must be at least 1")

    def _search(self, objective: Objective, x: Tensor, record: _Record, streams: _Streams) -> None:
        ball = _Ball(x, self.norm, self.eps * self._span, self.bounds)
        for _ in range(self.restarts):
            index = record.unfinished()
            if len(index):
                candidate = ball.random(index, streams) if self.random_start else x[index]
                self._climb(objective, ball, candidate, index, record, streams)

    def _climb(
        self,
        objective: Objective,
        ball: _Ball,
        candidate: Tensor,
        index: Tensor,
        record: _Record,
        streams: _Streams,
    ) -> None:
        velocity = torch.zeros_like(candidate)
        for k in range(self.steps):
            step = self.eps * (1 - k / self.steps) if self.step_size is None else self.step_size
            value, gradient = _value_and_gradient(objective, candidate, index)
            open_ = record.add(candidate, value, index)
            index, candidate, gradient, velocity = (t[open_] for t in (index, candidate, gradient, velocity))
            if not len(index):
                return
            velocity = self._accelerate(velocity, gradient)
            direction = ball.direction(velocity, index, streams)
            candidate = ball.project(candidate + step * self._span * direction, index)
        with torch.no_grad():
            record.add(candidate, objective(candidate, index), index)

    def _accelerate(self, velocity: Tensor, gradient: Tensor) -> Tensor:
        """Add a gradient to the share that is kept of the earlier ones."""
        if not self.momentum:
            return gradient
        size = gradient.abs().mean(dim=(-3, -2, -1), keepdim=True)
        return self.momentum * velocity + gradient / size.clamp(min=1e-30)


@dataclass(frozen=True)
class APGD(PGD):
    """Auto-PGD, whose step halves where progress stalls (Croce & Hein 2020, arXiv 2003.01690).

    `step_size` is where the schedule begins, by default `2 * eps`. `momentum`, of gradients, comes on top of
    the momentum of positions that is the method's own.
    """

    def _climb(
        self,
        objective: Objective,
        ball: _Ball,
        candidate: Tensor,
        index: Tensor,
        record: _Record,
        streams: _Streams,
    ) -> None:
        first = (2 * self.eps if self.step_size is None else self.step_size) * self._span
        value, gradient = _value_and_gradient(objective, candidate, index)
        record.add(candidate, value, index)
        ones = torch.ones_like(value).view(-1, *[1] * (candidate.ndim - 1))
        state = {
            "index": index,
            "x": candidate,
            "previous": candidate,
            "value": value,
            "gradient": gradient,
            "velocity": torch.zeros_like(candidate),
            "best": candidate,  # of this restart, with its value and gradient
            "best_value": value,
            "best_gradient": gradient,
            "step": first * ones,
            "rises": torch.zeros_like(value),
            "halved": torch.ones_like(value, dtype=torch.bool),  # whether the last check halved the step
            "checked_value": value,
        }
        checks = self._checkpoints()
        last_check = 0
        for k in range(1, self.steps + 1):
            open_ = record.value[state["index"]] <= record.goal
            state = {name: tensor[open_] for name, tensor in state.items()}
            if not len(state["index"]):
                return
            state = self._advance(
                objective, ball, state, streams, record, alpha=1.0 if k == 1 else 0.75, last=k == self.steps
            )
            if k in checks and k < self.steps:
                state = self._check(state, k - last_check)
                last_check = k

    def _checkpoints(self) -> set[int]:
        """Return the steps at which progress is looked at, ever more often (section 3.1 of the paper)."""
        period, less, least = (max(1, int(share * self.steps)) for share in (0.22, 0.03, 0.06))
        steps = {period}
        while max(steps) < self.steps:
            period = max(period - less, least)
            steps.add(max(steps) + period)
        return steps

    def _advance(
        self,
        objective: Objective,
        ball: _Ball,
        state: dict[str, Tensor],
        streams: _Streams,
        record: _Record,
        *,
        alpha: float,
        last: bool,
    ) -> dict[str, Tensor]:
        """Take one step with momentum and look at the value there."""
        index, x = state["index"], state["x"]
        velocity = self._accelerate(state["velocity"], state["gradient"])
        plain = ball.project(x + state["step"] * ball.direction(velocity, index, streams), index)
        moved = ball.project(x + alpha * (plain - x) + (1 - alpha) * (x - state["previous"]), index)
        if last:
            with torch.no_grad():
                value, gradient = objective(moved, index), state["gradient"]
        else:
            value, gradient = _value_and_gradient(objective, moved, index)
        record.add(moved, value, index)
        better = value > state["best_value"]
        wide = better.view(-1, *[1] * (x.ndim - 1))
        return {
            **state,
            "x": moved,
            "previous": x,
            "value": value,
            "gradient": gradient,
            "velocity": velocity,
            "best": torch.where(wide, moved, state["best"]),
            "best_value": torch.where(better, value, state["best_value"]),
            "best_gradient": torch.where(wide, gradient, state["best_gradient"]),
            "rises": state["rises"] + (value > state["value"]),
        }

    @staticmethod
    def _check(state: dict[str, Tensor], steps: int) -> dict[str, Tensor]:
        """Halve the step, from the best candidate on, where few steps rose or none brought a record."""
        few = state["rises"] <= 0.75 * steps
        stuck = ~state["halved"] & (state["best_value"] <= state["checked_value"])
        halve = few | stuck
        wide = halve.view(state["step"].shape)
        return {
            **state,
            "step": torch.where(wide, state["step"] / 2, state["step"]),
            "x": torch.where(wide, state["best"], state["x"]),
            "previous": torch.where(wide, state["best"], state["previous"]),
            "value": torch.where(halve, state["best_value"], state["value"]),
            "gradient": torch.where(wide, state["best_gradient"], state["gradient"]),
            "rises": torch.zeros_like(state["rises"]),
            "halved": halve,
            "checked_value": state["best_value"],
        }


@dataclass(frozen=True)
class SSA(PGD):
    """Semantic similarity attack, with which R-LPIPS trains (after Luo et al. 2022, CVPR).

    With PGD it pushes the image that people chose away from its own reference and towards an unrelated one,
    or pulls the image that they did not choose the other way. The objective must be `RankFlip`.

    Raises:
        TypeError: the objective is none of these.
    """

    def __call__(self, objective: Objective, x: Tensor, numbers: Sequence[int] | None = None) -> Tensor:
        """Search as `Attack` does."""
        if not isinstance(objective, RankFlip) or objective.perturb not in ("x0", "x1"):
            raise TypeError(
                "SSA attacks x0 or x1 of a triplet; the objective must be RankFlip on one of them"
            )
        return super().__call__(SemanticSimilarity(objective), x, numbers)


@dataclass(frozen=True)
class StAdv(Attack):
    """Spatial attack: a smooth flow field moves pixels (Xiao et al. 2018, arXiv 1801.02612).

    Args:
        eps: the most that a pixel moves, in pixels, in each direction.
        steps: gradient steps.
        step_size: of Adam, in pixels; by default `2.5 * eps / steps`.
        smoothness: weight of the flow's mean squared difference between neighbours, in pixels squared.
        bounds: the range of images.
        seed: of all that is random; the same seed gives the same result.
    """

    eps: float
    steps: int
    step_size: float | None = None
    smoothness: float = 0.05
    bounds: tuple[float, float] = field(default=(-1.0, 1.0), kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def _search(self, objective: Objective, x: Tensor, record: _Record, streams: _Streams) -> None:
        index = record.unfinished()
        if not len(index):
            return
        step = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        images = x[index]
        shape = (*images.shape[:-3], 2, *images.shape[-2:])
        flow = self.eps * 0.1 * (2 * streams.uniform(images.new_empty(shape), index) - 1)
        first, second = torch.zeros_like(flow), torch.zeros_like(flow)
        for k in range(1, self.steps + 1):
            with torch.enable_grad():
                flow = flow.detach().requires_grad_()
                candidate = self._warp(x[index], flow)
                value = objective(candidate, index)
                rough = torch.stack([flow.diff(dim=d).square().flatten(1).mean(dim=1) for d in (-1, -2)]).sum(
                    0
                )
                (gradient,) = torch.autograd.grad((value - self.smoothness * rough).sum(), flow)
            open_ = record.add(candidate, value.detach(), index)
            index, flow, gradient, first, second = (
                t[open_] for t in (index, flow, gradient.nan_to_num(0, 0, 0), first, second)
            )
            if not len(index):
                return
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()
            adam = (first / (1 - 0.9**k)) / ((second / (1 - 0.999**k)).sqrt() + 1e-12)
            flow = (flow.detach() + step * adam).clamp(-self.eps, self.eps)
        with torch.no_grad():
            candidate = self._warp(x[index], flow)
            record.add(candidate, objective(candidate, index), index)

    def _warp(self, images: Tensor, flow: Tensor) -> Tensor:
        """Sample images `(..., 3, H, W)` where the flow `(..., 2, H, W)`, in pixels (x, y), points to."""
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=flow.device, dtype=flow.dtype).view(-1, 1)
        columns = torch.arange(width, device=flow.device, dtype=flow.dtype)
        flows = flow.reshape(-1, 2, height, width)
        grid = torch.stack(
            [(2 * (columns + flows[:, 0]) + 1) / width - 1, (2 * (rows + flows[:, 1]) + 1) / height - 1],
            dim=-1,
        )
        flat = images.reshape(-1, *images.shape[-3:])
        moved = F.grid_sample(flat, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return moved.reshape(images.shape).clamp(*self.bounds)


_MOST = 1e6  # of a budget, of steps and of restarts in text; more is a slip


def parse_attack(text: str, *, seed: int = 0) -> Attack:
    """Read an attack from text, `NAME:EPS:STEPS` or `NAME:EPS:STEPS:RESTARTS`.

    NAME is 'linf' or 'l2' (PGD), 'apgd-linf', 'apgd-l2', 'ssa' (in l-inf) or 'stadv'; EPS a number or a
    fraction, on the [0, 1] scale, in pixels for 'stadv', at most 1e6; STEPS and RESTARTS at most 1e6.

    Raises:
        ValueError: the text is none of that.

    >>> parse_attack("linf:4/255:50").steps
    50
    """
    name, *numbers = text.split(":")
    brief = repr(text if len(text) <= 60 else f"{text[:57]}...")
    try:
        above, _, below = numbers[0].partition("/")
        eps, steps = float(above) / float(below or 1), int(numbers[1])
        restarts = int(numbers[2]) if len(numbers) > 2 else 1
    except (ValueError, IndexError, ZeroDivisionError):
        eps, steps, restarts = 0.0, 0, 0
    if not steps or len(numbers) > (2 if name == "stadv" else 3) or numbers[0].endswith("/"):
        raise ValueError(f"{brief} is not an attack; write NAME:EPS:STEPS[:RESTARTS], such as linf:4/255:50")
    if not (0 <= eps <= _MOST and steps <= _MOST and restarts <= _MOST):
        raise ValueError(
            f"{brief} is not an attack; EPS must lie in 0 ... 1e6, STEPS and RESTARTS must be at most 1e6"
        )
    if name in ("linf", "l2"):
        return PGD("linf" if name == "linf" else "l2", eps, steps, restarts=restarts, seed=seed)
    if name in ("apgd-linf", "apgd-l2"):
        norm: Norm = "linf" if name == "apgd-linf" else "l2"
        return APGD(norm, eps, steps, restarts=restarts, seed=seed)
    if name == "ssa":
        return SSA("linf", eps, steps, restarts=restarts, seed=seed)
    if name == "stadv":
        return StAdv(eps, steps, seed=seed)
    raise ValueError(f"{brief} is no attack that is known; choose linf, l2, apgd-linf, apgd-l2, ssa or stadv")


class TripletClassifier(nn.Module):
    """A metric with its triplets as a classifier of two classes, for the attacks of other libraries.

    It takes images `(N, C, H, W)` in [0, 1], in place of those that `perturb` names, and returns the logits
    `(d1, d0)`, `(N, 2)`: class 0 says that `x0` is closer to the reference. Which triplet an image belongs to
    is found by the nearest unperturbed image, so libraries may pass any part of the batch, in any order.

    Args:
        metric: the metric, on images in [-1, 1].
        ref: references `(N, 3, H, W)` in [-1, 1].
        x0: the first distorted images.
        x1: the second.
        judge: share of people who chose `x1`, N values in any shape.
        perturb: 'x0', 'x1', 'ref', or 'x0+x1', which takes both one after the other as `(N, 6, H, W)`.

    Attributes:
        images: the unperturbed images, in [0, 1], to start attacks from.
        labels: the right classes, `(N,)`, int64.
    """

    images: Tensor
    labels: Tensor

    def __init__(
        self, metric: Metric, ref: Tensor, x0: Tensor, x1: Tensor, judge: Tensor, perturb: str = "x0"
    ) -> None:
        super().__init__()
        self._objective = RankFlip(metric, ref, x0, x1, judge, perturb)
        self.register_buffer("images", (self._objective.x.flatten(1, -3) + 1) / 2)
        self.register_buffer("labels", (judge.flatten() >= 0.5).long())

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `(N, 2)`."""
        with torch.no_grad():
            index = torch.cdist(x.detach().flatten(1), self.images.flatten(1)).argmin(dim=1)
        d0, d1 = self._objective.distances((2 * x - 1).reshape(-1, *self._objective.x.shape[1:]), index)
        return torch.stack([d1, d0], dim=1)
