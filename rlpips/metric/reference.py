"""Features of images that are kept, to compare the images many times, and the metric that they belong to."""

import operator
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import SupportsIndex

import torch
from torch import Tensor, nn

from rlpips.metric.formula import at_least_float32, normalize_tensor
from rlpips.system.autograd import eager


@dataclass(eq=False)
class Source:
    """The metric that made references, and its state at that time.

    References and their metric hold the same object. `copy` and `pickle` keep this so if they copy both as
    parts of one object. That is how a reference is recognised.
    """

    name: str
    state: tuple[object, ...]


@dataclass(frozen=True, repr=False)
class Reference:
    """The features of a batch of images, made by `LPIPS.reference`.

    It belongs to the metric that made it, as long as the weights, dtype and device of the metric's backbone
    stay the same; heads may change. If a metric and its references are copied or pickled as parts of one
    object, the copies belong together too.

    Attributes:
        features: the features of each layer, `(N, C, h, w)`.
        lengths: their lengths over channels, `(N, 1, h, w)`, with the metric's floors, as constants.
        floors: the floor of each layer, a scalar, or None.
        shape: the shape of the images, `(N, 3, H, W)`.
        dtype: the dtype of distances to the images.
        source: identifies the metric that made the reference.
    """

    features: tuple[Tensor, ...]
    lengths: tuple[Tensor, ...]
    floors: tuple[Tensor | None, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: Source | None = None

    def __repr__(self) -> str:
        features = ", ".join(str(tuple(f.shape[1:])) for f in self.features)
        return f"Reference(images={self.shape}, features=[{features}], {dtype_and_device(self.features[0])})"

    @property
    def unit_features(self) -> tuple[Tensor, ...]:
        """The features scaled to unit length over channels, in float32 or float64."""
        each_layer = zip(self.features, self.floors, strict=True)
        return tuple(normalize_tensor(at_least_float32(f), floor=floor) for f, floor in each_layer)

    def __getitem__(self, index: int | Tensor | slice | Sequence[int]) -> "Reference":
        """Select images by a number, a slice, a mask, or a tensor or list of numbers.

        A number selects a batch of one image.

        Raises:
            IndexError: there is no image with this number.
            TypeError: the index is none of these.
        """
        if isinstance(index, Tensor) and index.dtype == torch.int64:
            # an attack selects all images at each step, which needs no copy
            if eager() and torch.equal(index, torch.arange(len(self.features[0])).to(index)):
                return self
            return self._select(lambda each: each.index_select(0, index))
        if isinstance(index, SupportsIndex) and not (isinstance(index, Tensor) and index.ndim):
            number = operator.index(index)
            return self._select(lambda each: each[number][None])
        if not isinstance(index, Tensor | slice | list):
            raise TypeError(
                "images of a reference are selected by a number, a slice, a mask, or a tensor or list of "
                f"numbers, got {type(index).__name__}"
            )
        return self._select(lambda each: each[index])

    def _select(self, select: Callable[[Tensor], Tensor]) -> "Reference":
        with ordinary_tensors():
            features, lengths = (tuple(map(select, group)) for group in (self.features, self.lengths))
        return replace(self, features=features, lengths=lengths, shape=(len(features[0]), *self.shape[1:]))


def check_source(
    name: str, reference: Reference, metric: nn.Module, source: Source | None, state: object
) -> None:
    """Check that a reference belongs to a metric in its present state.

    Args:
        name: the name of the reference in error messages.
        reference: the reference. Without a source, it is not checked.
        metric: the metric that should have made it.
        source: the source of the metric's latest references; None if it has made none.
        state: the metric's present state.

    Raises:
        ValueError: another metric made the reference, or this one made it before it changed.
    """
    if reference.source is None:
        return
    if reference.source is not source:
        raise ValueError(
            f"{name} is a reference that another metric made: {reference.source.name}. This metric is "
            f"{metric!r}. Make the reference with this metric's reference(images)"
        )
    if source.state != state:
        raise ValueError(
            f"{name} is a reference that was made before the metric changed: its backbone's weights, its "
            f"version, dtype or device. It was {source.name} and is now {metric!r}. Make the reference again "
            "with reference(images)"
        )


def weights_state(net: nn.Module) -> list[object]:
    """Return values that change whenever parameters of a network are replaced or changed in place."""
    state: list[object] = []
    modules = [net]
    while modules:  # takes a quarter of the time of net.parameters()
        module = modules.pop()
        modules += [child for child in module._modules.values() if child is not None]
        for p in module._parameters.values():
            if p is not None:
                state += id(p), 0 if p.is_inference() else p._version
    return state


def ordinary_tensors() -> ExitStack:
    """Create tensors that a loss may keep for its backward pass, even under `torch.inference_mode`."""
    stack = ExitStack()
    if torch.is_inference_mode_enabled():
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
    return stack


def dtype_and_device(tensor: Tensor) -> str:
    """Return text such as 'float32, cpu'."""
    return f"{str(tensor.dtype).removeprefix('torch.')}, {tensor.device}"
