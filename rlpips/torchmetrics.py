"""LPIPS as a torchmetrics metric: the interface of torchmetrics' own, with the weights of this package."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlpips.backbones import ARCHITECTURES, architecture
from rlpips.errors import MissingExtraError
from rlpips.inputs import check_image, check_pair, check_range
from rlpips.metric import LPIPS

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


class LearnedPerceptualImagePatchSimilarity(Metric):
    """The mean distance of all pairs of images so far, in place of torchmetrics' class of the same name.

    `update` measures a batch, `compute` returns the result over all batches and, in a process group, over all
    ranks; `forward` does both and returns the value of its batch, through which gradients flow to the images.
    Where the reduction allows, the state is a sum and a count, whose size does not grow with the images.

    The metric inside, `net`, is frozen: it stays in eval mode and requires no gradient. Its weights are part
    of the state dict as they are in torchmetrics, under the same names for 'alex' and 'vgg', so that each
    loads the other's checkpoints.

    Args:
        net_type: the backbone, 'alex', 'vgg' or 'squeeze'.
        reduction: 'mean'; 'sum'; or 'none' or None for the distance of each pair, those of one rank after
            those of another. These are kept one and all, on the CPU with `compute_on_cpu=True`.
        normalize: images are in [0, 1] rather than [-1, 1].
        weights: as for `rlpips.LPIPS`. The standard ones give torchmetrics' numbers.
        kwargs: those of every `torchmetrics.Metric`, such as `dist_sync_on_step`.

    Raises:
        ValueError: an argument is unknown or does not fit the others.
        CheckpointError: a file is not a checkpoint for this metric.
        WeightsUnavailableError: weights are not on this machine and could not be fetched.

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
    feature_network: str = "net"  # what torchmetrics' FeatureShare looks for

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
            raise ValueError(f"normalize must be True or False, got {normalize!r}")  # noqa: TRY004, as there
        self.net_type = net_type
        self.reduction = reduction
        self.normalize = normalize
        self.net = LPIPS(net=net_type, weights=weights, check_range=False)
        for name, buffer in list(self.net.scaling_layer.named_buffers()):
            self.net.scaling_layer.register_buffer(name, buffer, persistent=False)  # as torchmetrics has it
        if reduction in ("mean", "sum"):
            self.add_state("total", torch.zeros((), dtype=_wide(self.device)), dist_reduce_fx="sum")
            self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        else:
            self.add_state("scores", [], dist_reduce_fx="cat")

    def update(self, img1: Tensor, img2: Tensor) -> None:
        """Measure the distances of a batch of pairs.

        Args:
            img1: `(N, 3, H, W)`, RGB in [-1, 1], or [0, 1] with `normalize=True`; floating point, on the
                metric's device.
            img2: likewise.

        Raises:
            TypeError: not tensors, or not of a usable dtype.
            ValueError: shapes that do not fit, images too small for the backbone, wrong device, values out of
                range or NaN.
        """
        images = {"img1": img1, "img2": img2}
        like = next(self.net.parameters())
        for name, image in images.items():
            check_image(name, image, like=like, min_size=architecture(self.net_type).min_size)
        check_pair(img1.shape, img2.shape, names=tuple(images))
        check_range(images, self.normalize)
        scores = self.net(img1, img2, normalize=self.normalize).flatten()
        if self.reduction in ("mean", "sum"):
            self.total = self.total + scores.sum(dtype=self.total.dtype)
            self.count = self.count + len(scores)
        else:
            self.scores.append(scores)

    def compute(self) -> Tensor:
        """Return the mean or the sum of all distances so far, a scalar, or all of them, `(N,)`.

        Raises:
            ValueError: nothing was measured.
        """
        listed = self.reduction in ("none", None)
        if not (len(self.scores) if listed else self.count):
            raise ValueError("no images were measured; call update or the metric itself before compute")
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
            val: what `compute` or `forward` returned, or a list of such values; by default what `compute`
                returns now.
            ax: axes to draw on.

        Returns:
            The figure, None where axes were given, and the axes.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        return self._plot(val, ax)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()
    ) -> "LearnedPerceptualImagePatchSimilarity":
        """Move and convert the metric, but only move the sum and the count, which must not be rounded."""
        kept = [name for name in ("total", "count") if name in self._defaults]
        super()._apply(fn, exclude_state=(*exclude_state, *kept))
        for name in kept:
            value: Tensor = getattr(self, name)
            dtype = _wide(self.device) if value.is_floating_point() else value.dtype
            value = value.to(self.device, dtype)
            setattr(self, name, value)
            self._defaults[name] = torch.zeros_like(value)
        return self


def _wide(device: torch.device) -> torch.dtype:
    """Return the dtype in which many distances may be added up on a device."""
    return torch.float32 if device.type == "mps" else torch.float64  # which Apple's GPUs do not have
