"""Auto-PGD: PGD that chooses its step size itself."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rlpips.attacks.base import Search
from rlpips.attacks.pgd import PGD


@dataclass
class _State:
    """Where one restart stands. Each tensor has one row per image that is not finished."""

    index: Tensor  # which images of the batch these are
    x0: Tensor  # the images as they were given
    step: Tensor  # size of the step, in the images' range
    x: Tensor
    x_before: Tensor
    value: Tensor  # the objective at x
    gradient: Tensor
    velocity: Tensor
    best: Tensor  # the best x of this restart
    best_value: Tensor
    best_gradient: Tensor
    rises: Tensor  # steps since the last checkpoint that increased the objective
    halved: Tensor  # whether the last checkpoint halved the step
    best_at_checkpoint: Tensor  # best_value at the last checkpoint

    @classmethod
    def at_start(
        cls, index: Tensor, x0: Tensor, x: Tensor, value: Tensor, gradient: Tensor, step: float
    ) -> "_State":
        return cls(
            index=index,
            x0=x0,
            step=step * _per_image(torch.ones_like(value), x),
            x=x,
            x_before=x,
            value=value,
            gradient=gradient,
            velocity=torch.zeros_like(x),
            best=x,
            best_value=value,
            best_gradient=gradient,
            rises=torch.zeros_like(value),
            halved=torch.ones_like(value, dtype=torch.bool),
            best_at_checkpoint=value,
        )

    def only(self, rows: Tensor) -> "_State":
        """Return the state of some images."""
        return _State(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def move_to(self, x: Tensor, value: Tensor, gradient: Tensor) -> None:
        """Go to the next candidates and keep the best."""
        better = value > self.best_value
        self.best = torch.where(_per_image(better, x), x, self.best)
        self.best_value = torch.where(better, value, self.best_value)
        self.best_gradient = torch.where(_per_image(better, x), gradient, self.best_gradient)
        self.rises = self.rises + (value > self.value)
        self.x_before, self.x, self.value, self.gradient = self.x, x, value, gradient

    def check(self, steps: int) -> None:
        """Halve the step of images that stall, and send them back to their best candidate.

        An image stalls if at most 75 % of the `steps` since the last checkpoint increased the objective, or
        if the best value is the same as at the last checkpoint and the step was not halved there (conditions
        1 and 2 in section 3.1 of the paper).
        """
        few_rises = self.rises <= 0.75 * steps
        stuck = ~self.halved & (self.best_value <= self.best_at_checkpoint)
        stalled = few_rises | stuck
        wide = _per_image(stalled, self.x)
        self.step = torch.where(wide, self.step / 2, self.step)
        self.x = torch.where(wide, self.best, self.x)
        self.x_before = torch.where(wide, self.best, self.x_before)
        self.value = torch.where(stalled, self.best_value, self.value)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)
        self.rises = torch.zeros_like(self.rises)
        self.halved = stalled
        self.best_at_checkpoint = self.best_value


@dataclass(frozen=True)
class APGD(PGD):
    """Auto-PGD, which halves its step where progress stalls (Croce & Hein 2020, arXiv 2003.01690).

    The arguments are those of `PGD`. `step_size` is the first step, by default `2 * eps`. `momentum` is that
    of gradients. It comes on top of the method's own momentum of positions.
    """

    def _climb(self, search: Search, index: Tensor, x0: Tensor, x: Tensor) -> None:
        first_step = (2 * self.eps if self.step_size is None else self.step_size) * self._span
        state = _State.at_start(index, x0, x, *search.value_and_gradient(x, index), first_step)
        checkpoints = self._checkpoints()
        last_checkpoint = 0
        for k in range(1, self.steps + 1):
            state = state.only(search.is_unfinished(state.index))
            if not len(state.index):
                return
            x = self._next(state, search, alpha=1.0 if k == 1 else 0.75)
            if k == self.steps:
                search.value(x, state.index)  # no step follows, so no gradient is needed
                return
            state.move_to(x, *search.value_and_gradient(x, state.index))
            if k in checkpoints:
                state.check(k - last_checkpoint)
                last_checkpoint = k

    def _next(self, state: _State, search: Search, alpha: float) -> Tensor:
        """Return the next candidates: a projected step `z`, mixed with the last move (algorithm 1)."""
        state.velocity = self._accelerate(state.velocity, state.gradient)
        x, x0 = state.x, state.x0
        direction = self._steepest(state.velocity, state.index, search.random)
        z = self._project(x + state.step * direction, x0)
        return self._project(x + alpha * (z - x) + (1 - alpha) * (x - state.x_before), x0)

    def _checkpoints(self) -> set[int]:
        """Return the steps after which progress is checked, ever closer together (section 3.1)."""
        period, shrink, shortest = (max(1, int(share * self.steps)) for share in (0.22, 0.03, 0.06))
        steps = {period}
        while max(steps) < self.steps:
            period = max(period - shrink, shortest)
            steps.add(max(steps) + period)
        return steps


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    """Reshape one value per image, `(N,)`, so that it broadcasts over images `x`."""
    return values.view(-1, *[1] * (x.ndim - 1))
