"""How attacks call a metric: one distance per image, with the activations of fixed images computed once.

A metric is any callable that maps two batches of images `(N, 3, H, W)` to N distances. `rlpips.LPIPS` also
has a method `reference`, which runs a batch through the backbone. With it, images that an attack does not
change pass through the backbone only once.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Metric = Callable[[Any, Any], Tensor]


def metric_name(metric: Any) -> str:
    """Return a metric's name for messages: the name of the function, or of the class."""
    return str(getattr(metric, "__qualname__", type(metric).__qualname__))


def precompute(metric: Metric, images: Tensor) -> Any:
    """Run images through the metric's backbone, to compare them many times.

    Returns:
        What the metric takes in place of the images. Without a method `reference`, the images themselves.
    """
    reference = getattr(metric, "reference", None)
    return images if reference is None else reference(images)


def distances(metric: Metric, a: Any, b: Any) -> Tensor:
    """Measure distances `(N,)`. A metric that returns maps is averaged over each map."""
    measured = metric(a, b)
    return measured.reshape(measured.shape[0], -1).mean(dim=1)
