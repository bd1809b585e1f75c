"""Projected gradient descent, the standard attack."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from rlpips.attacks.base import Attack, Search
from rlpips.attacks.random_streams import RandomStreams

Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent (Madry et al. 2018, arXiv 1706.06083).

    One step without a random start and with `step_size=eps` is FGSM (Goodfellow et al. 2015). `momentum=1` is
    MI-FGSM (Dong et al. 2018, arXiv 1710.06081).

    Args:
        norm: 'linf' or 'l2'. The l2 norm is over all pixels of one image.
        eps: radius of the ball, on the [0, 1] scale.
        steps: gradient steps per restart. Each costs one forward and one backward pass.
        step_size: by default it falls linearly from `eps` to `eps / steps`, which works better than any one
            size.
        random_start: start at a random point of the ball instead of at `x`.
        restarts: how many times to start.
        momentum: share of the earlier direction that is kept.
        bounds: the range of images.
        seed: seed of all randomness. The same seed gives the same result.

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

    def _run(self, search: Search) -> None:
        for _ in range(self.restarts):
            index = search.unfinished()
            if len(index):
                x0 = search.start[index]
                x = self._random_point(x0, index, search.random) if self.random_start else x0
                self._climb(search, index, x0, x)

    def _climb(self, search: Search, index: Tensor, x0: Tensor, x: Tensor) -> None:
        """Increase the objective from `x` on, within the ball around `x0`."""
        velocity = torch.zeros_like(x)
        for k in range(self.steps):
            _, gradient = search.value_and_gradient(x, index)
            rows = search.is_unfinished(index)
            index, x0, x, gradient, velocity = (t[rows] for t in (index, x0, x, gradient, velocity))
            if not len(index):
                return
            velocity = self._accelerate(velocity, gradient)
            direction = self._steepest(velocity, index, search.random)
            x = self._project(x + self._step(k) * direction, x0)
        search.value(x, index)

    def _step(self, k: int) -> float:
        """Return the size of step `k`, counted from 0, in the images' range."""
        size = self.eps * (1 - k / self.steps) if self.step_size is None else self.step_size
        return size * self._span

    def _accelerate(self, velocity: Tensor, gradient: Tensor) -> Tensor:
        """Add the gradient, scaled to a mean absolute value of 1, to `momentum` times the velocity."""
        if not self.momentum:
            return gradient
        size = gradient.abs().mean(dim=(-3, -2, -1), keepdim=True)
        return self.momentum * velocity + gradient / size.clamp(min=1e-30)

    def _project(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return `x`, moved into the ball around `x0` and then into the range of images."""
        radius = self.eps * self._span
        delta = x - x0
        if self.norm == "linf":
            delta = delta.clamp(-radius, radius)
        else:
            delta = delta * (radius / _length(delta).clamp(min=1e-12)).clamp(max=1)
        return (x0 + delta).clamp(*self.bounds)

    def _steepest(self, gradient: Tensor, index: Tensor, random: RandomStreams) -> Tensor:
        """Return the direction of steepest ascent, of length 1 in the norm.

        Where the whole gradient of an image is zero, the direction is random.
        """
        zero = (gradient == 0).flatten(1).all(dim=1)
        if zero.any():
            gradient = gradient.clone()
            gradient[zero] = random.normal(gradient[zero], index[zero])
        return gradient.sign() if self.norm == "linf" else gradient / _length(gradient).clamp(min=1e-30)

    def _random_point(self, x0: Tensor, index: Tensor, random: RandomStreams) -> Tensor:
        """Draw uniformly from the ball around `x0`, then move into the range of images."""
        radius = self.eps * self._span
        if self.norm == "linf":
            return self._project(x0 + radius * (2 * random.uniform(x0, index) - 1), x0)
        direction = random.normal(x0, index)
        share = random.uniform(direction[..., :1, :1, :1], index) ** (1 / x0.shape[-3:].numel())
        return self._project(x0 + radius * share * direction / _length(direction), x0)


def _length(x: Tensor) -> Tensor:
    """Return the Euclidean length of each image `(..., 3, H, W)`, as `(..., 1, 1, 1)`."""
    return x.square().sum(dim=(-3, -2, -1), keepdim=True).sqrt()
