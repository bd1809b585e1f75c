"""LPIPS for torchmetrics: the interface of torchmetrics' own class, with the weights of this package."""

import re
import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlpips.backbones.architectures import ARCHITECTURES, architecture
from rlpips.errors import MissingExtraError
from rlpips.metric.inputs import check_image, check_pair, check_range
from rlpips.metric.lpips import LPIPS
from rlpips.metric.reference import Reference

try:
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
except ImportError as error:
    raise MissingExtraError("rlpips.torchmetrics", "torchmetrics") from error

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_REDUCTIONS = ("mean", "sum", "none", None)


class _LPIPS(LPIPS):
    """The metric, which also takes `retPerLayer` by the name that torchmetrics uses."""

    def forward(  # type: ignore[override]
        self,
        in0: Tensor | Reference,
        in1: Tensor | Reference,
        retPerLayer: bool = False,
        normalize: bool = False,
        tile: int | None = None,
        *,
        retperlayer: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Return what `LPIPS.forward` returns."""
        per_layer = retPerLayer or retperlayer
        return super().forward(in0, in1, per_layer, normalize, tile)  # type: ignore[call-overload, no-any-return]


class LearnedPerceptualImagePatchSimilarity(Metric):
    """The mean distance of all pairs of images so far: a drop-in for torchmetrics' class of the same name.

    `update` measures a batch. `compute` returns the result over all batches and, in a process group, over all
    ranks. `forward` does both and returns the value of its batch; gradients flow through it to the images.
    With the reductions 'mean' and 'sum', the state is a sum and a count, and does not grow.

    The LPIPS module inside, `net`, is frozen: it stays in eval mode and requires no gradient. The state dict
    holds its weights under the names that torchmetrics uses, so each class loads checkpoints of the other.
    `net(x, y, retperlayer=True)` also returns the shares of the layers.

    Args:
        net_type: the backbone: 'alex', 'vgg' or 'squeeze'.
        reduction: 'mean'; 'sum'; or 'none' or None for the distance of each pair, rank by rank. With 'none'
            or None, all distances are kept; `compute_on_cpu=True` keeps them on the CPU.
        normalize: the images are in [0, 1] instead of [-1, 1].
        weights: the weights, by name or path, as in `rlpips.LPIPS`. 'standard' gives torchmetrics' numbers.
        kwargs: arguments of every `torchmetrics.Metric`, such as `dist_sync_on_step`.

    Raises:
        ValueError: an argument is unknown or does not fit the others.
        CheckpointError: a file is not a checkpoint for this metric.
        WeightsUnavailableError: weights are not on this machine and could not be downloaded.

    >>> metric = LearnedPerceptualImagePatchSimilarity(weights="robust")
    >>> x = torch.full((2, 3, 64, 64), -0.5)
    >>> metric.update(x, x)
    >>> metric.compute()
    tensor(0.)
    """

    is_differentiable: bool = True
    higher_is_better: bool = False
    full_state_update: bool = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    feature_network: str = "net"  # torchmetrics' FeatureShare reads this

    _told_range: bool = False

    total: Tensor
    count: Tensor
    scores: list[Tensor]

    def __init__(
        self,
        net_type: str = "alex",
        reduction: str | None = "mean",
        normalize: bool = False,
        *,
        weights: str | PathLike[str] = "standard",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value, known in (
            ("net_type", net_type, tuple(ARCHITECTURES)),
            ("reduction", reduction, _REDUCTIONS),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, known))}")
        if not isinstance(normalize, bool):
            raise ValueError(f"normalize must be True or False, got {normalize!r}")  # noqa: TRY004, as in torchmetrics
        self.net_type = net_type
        self.reduction = reduction
        self.normalize = normalize
        self.net = _LPIPS(net=net_type, weights=weights, check_range=False)
        for name, buffer in list(self.net.scaling_layer.named_buffers()):
            self.net.scaling_layer.register_buffer(name, buffer, persistent=False)  # as in torchmetrics
        if reduction in ("mean", "sum"):
            self.add_state("total", torch.zeros((), dtype=_sum_dtype(self.device)), dist_reduce_fx="sum")
            self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        else:
            self.add_state("scores", [], dist_reduce_fx="cat")

    def update(self, img1: Tensor, img2: Tensor) -> None:
        """Measure the distances of a batch of pairs.

        Args:
            img1: `(N, 3, H, W)`, RGB in [-1, 1], or [0, 1] with `normalize=True`; floating point, on the
                metric's device. Without `normalize`, values above 1 are measured, as in torchmetrics, with
                one warning.
            img2: likewise.

        Raises:
            TypeError: the images are not tensors or have no usable dtype.
            ValueError: shapes do not fit, images are too small for the backbone or on another device, or
                values are out of range or NaN.
        """
        images = {"img1": img1, "img2": img2}
        like = next(self.net.parameters())
        for name, image in images.items():
            check_image(name, image, like=like, min_size=architecture(self.net_type).min_size)
        check_pair(img1.shape, img2.shape, names=tuple(images))
        message = check_range(images, self.normalize, beyond=not self.normalize)
        if message and not self._told_range:
            self._told_range = True
            warnings.warn(
                f"{message}. They are measured. This warning is shown once.", UserWarning, stacklevel=3
            )
        scores = self.net(img1, img2, normalize=self.normalize).flatten()
        if self.reduction in ("mean", "sum"):
            self.total = self.total + scores.sum(dtype=self.total.dtype)
            self.count = self.count + len(scores)
        else:
            self.scores.append(scores)

    def compute(self) -> Tensor:
        """Return the mean or the sum of all distances so far, a scalar, or all distances, `(N,)`.

        Raises:
            ValueError: no images have been measured.
        """
        listed = self.reduction in ("none", None)
        if not (len(self.scores) if listed else self.count):
            raise ValueError(
                "no images have been measured; call update, or the metric itself, before compute"
            )
        if listed:
            scores: Tensor = dim_zero_cat(self.scores)
            return scores
        value = self.total / self.count if self.reduction == "mean" else self.total
        return value.to(self.dtype)

    def plot(
        self, val: Tensor | Sequence[Tensor] | None = None, ax: "Axes | None" = None
    ) -> "tuple[Figure | None, Axes | np.ndarray]":
        """Draw values with matplotlib.

        Args:
            val: a value of `compute` or `forward`, or a list of such values. The default is what `compute`
                returns now.
            ax: axes to draw on.

        Returns:
            The figure, which is None if `ax` is given, and the axes.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        return self._plot(val, ax)

    def state_dict(  # type: ignore[override]
        self, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Return the weights, and states that are persistent, under the names that torchmetrics uses."""
        state: dict[str, Any] = super().state_dict(
            destination=destination, prefix=prefix, keep_vars=keep_vars
        )
        if self.net_type == "squeeze":
            start = f"{prefix}net.net."
            _rename(state, rf"{re.escape(start)}slice(\d+)", lambda k: f"{start}slices.{k - 1}")
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.net_type == "squeeze":
            start = f"{prefix}net.net."
            _rename(state_dict, rf"{re.escape(start)}slices\.(\d+)", lambda k: f"{start}slice{k + 1}")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()
    ) -> "LearnedPerceptualImagePatchSimilarity":
        """Move and convert the metric, but do not convert the sum and the count, because this rounds them."""
        sums = [name for name in ("total", "count") if name in self._defaults]
        super()._apply(fn, exclude_state=(*exclude_state, *sums))
        for name in sums:
            value: Tensor = getattr(self, name)
            dtype = _sum_dtype(self.device) if value.is_floating_point() else value.dtype
            value = value.to(self.device, dtype)
            setattr(self, name, value)
            self._defaults[name] = torch.zeros_like(value)
        return self


def _rename(state: dict[str, Any], pattern: str, new: Callable[[int], str]) -> None:
    """Rename the slices of a backbone in a state dict; `new` makes the name from the number of a slice."""
    for key in list(state):
        renamed = re.sub(rf"^{pattern}(?=\.)", lambda match: new(int(match[1])), key)
        state[renamed] = state.pop(key)


def _sum_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype for sums of many distances on a device."""
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
