"""What all attacks share: the call, the check of its arguments, and the best image found so far.

`attack(objective, x)` returns images of the shape and dtype of `x`. They lie within the attack's budget
around `x` and within the range of images. For each image the attack keeps the best candidate it has seen, `x`
itself included. It stops working on an image as soon as the objective exceeds its `goal`. `eps` and
`step_size` are in units of the [0, 1] scale, whatever the images' range.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlpips.attacks.metrics import metric_name
from rlpips.attacks.objectives import Objective
from rlpips.attacks.random_streams import RandomStreams
from rlpips.errors import UndefinedDistanceError


class Search:
    """The state of one call of an attack: for each image the best candidate, and its random numbers.

    Attacks look only at images that are not finished. An `index` says which images of the batch these are.

    Attributes:
        objective: the objective.
        start: the images as they were given.
        best: the best candidates so far.
        undefined: mask of the images for which some value was NaN. Such an image counts as finished.
        random: the random numbers of each image.
    """

    def __init__(self, objective: Objective, start: Tensor, random: RandomStreams) -> None:
        self.objective, self.start, self.random = objective, start, random
        self.best = start.clone()
        with torch.no_grad():
            self._best_value = objective(start, torch.arange(len(start), device=start.device)).detach()
        self.undefined = self._best_value.isnan()

    def unfinished(self) -> Tensor:
        """Return the index of all images that are not finished."""
        return (self._best_value <= self.objective.goal).nonzero().flatten()

    def is_unfinished(self, index: Tensor) -> Tensor:
        """Return a mask: which of these images are not finished."""
        return self._best_value[index] <= self.objective.goal

    def value(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the objective at candidates `x`, and keep the best candidates so far."""
        with torch.no_grad():
            value = self.objective(x, index)
        self.keep_best(x, value, index)
        return value

    def value_and_gradient(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective at candidates `x` and its gradient, and keep the best candidates so far."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self.objective(x, index)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        value = value.detach()
        self.keep_best(x, value, index)
        # The gradient may have the memory format of the metric's activations; images have the standard one.
        return value, gradient.nan_to_num(0, 0, 0).contiguous()

    def keep_best(self, x: Tensor, value: Tensor, index: Tensor) -> None:
        """Keep the candidates whose value is the best so far of their image."""
        self.undefined[index] |= value.isnan()
        better = value > self._best_value[index]
        self.best[index[better]] = x[better].detach()
        self._best_value[index[better]] = value[better].detach()


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

    def __call__(self, objective: Objective, x: Tensor, image_ids: Sequence[int] | None = None) -> Tensor:
        """Search, from images `x`, for images on which the objective is large.

        Args:
            objective: what to increase.
            x: `(N, 3, H, W)`, or what the objective asks for, within `bounds`, floating point.
            image_ids: a number for each image, such as its position in a data set. It selects the image's
                random stream. By default it is the image's position in the batch.

        Returns:
            Images of the same shape and dtype, within the budget around `x` and within `bounds`.

        Raises:
            UndefinedDistanceError: the objective was NaN for an image. The error holds the image's number.
            ValueError: `x` is not within `bounds`.
        """
        if x.numel() and not (x.min() >= self.bounds[0] and x.max() <= self.bounds[1]):
            raise ValueError(f"images must lie in {list(self.bounds)}, got [{x.min():.4g}, {x.max():.4g}]")
        start = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        image_ids = range(len(x)) if image_ids is None else image_ids
        search = Search(objective, start, RandomStreams(self.seed, image_ids))
        self._run(search)
        # Read once at the end, so that no step waits for the device.
        undefined = search.undefined.nonzero().flatten().tolist()
        if undefined:
            image_id = image_ids[undefined[0]]
            raise UndefinedDistanceError(
                f"{metric_name(getattr(objective, 'metric', objective))} gives NaN for image {image_id}, "
                "so an attack on it means nothing",
                image_id,
            )
        return search.best.to(x.dtype)

    @property
    def _span(self) -> float:
        """The width of the images' range. `eps` times this is the budget in the images' units."""
        return self.bounds[1] - self.bounds[0]

    def _run(self, search: Search) -> None:
        """Look at candidates. The search keeps the best of them."""
        raise NotImplementedError
