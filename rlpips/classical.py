"""Classical metrics by name, as distances that attacks can follow: SSIM, MS-SSIM, MSE, PSNR and others.

The formulas are those of `piq` (extra `classical`), except for MSE. A `ClassicalMetric` is called like
`rlpips.LPIPS`, so attacks and reports take both.

`piq`'s DISTS, LPIPS and PieAPP are not among them, because they download weights.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rlpips.errors import MissingExtraError

__all__ = ["CLASSICAL", "ClassicalMetric"]

_SLACK = 1e-3  # values that are so little outside of [0, 1] are rounded ones
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of MS-SSIM's scales, the finest first
_WINDOW = 11  # pixels of a side of SSIM's window


@dataclass(frozen=True)
class ClassicalMetric:
    """A classical metric as a distance between images: smaller is more similar.

    | name | distance |
    | --- | --- |
    | `ssim`, `haarpsi`, `fsim`, `vsi`, `vif` | 1 minus the similarity |
    | `ms-ssim` | the same; on images smaller than 161 pixels, of as many of its five scales as fit |
    | `gmsd`, `mdsi` | as published |
    | `mse` | mean squared difference on the [0, 1] scale |
    | `psnr` | 80 dB minus PSNR; 80 dB is `piq`'s PSNR of equal images |

    The finest scales of `ms-ssim` stay, and their weights are divided by their sum: 81 pixels allow four
    scales, 41 three, 21 two and 11 one. VIF can be above 1, so its distance can be negative. The inflation of
    `psnr` says little, because decibels have no zero of their own; `mse` ranks images in the same way.

    Distances have finite gradients, also between equal images and in flat regions, where those of `piq` are
    NaN: the slope of a root at 0 counts as 0 instead of infinity.

    >>> import torch
    >>> x, y = torch.zeros(2, 3, 64, 64), torch.full((2, 3, 64, 64), 0.2)
    >>> ClassicalMetric("mse")(x, y)
    tensor([0.0100, 0.0100])

    Args:
        name: a name from `CLASSICAL`.

    Raises:
        MissingExtraError: `piq` is not installed.
        ValueError: there is no metric of this name.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in _FORMULAS:
            raise ValueError(
                f"there is no classical metric {self.name!r}; the names are {', '.join(CLASSICAL)}"
            )
        if self.name != "mse":
            try:
                import piq  # noqa: F401
            except ImportError as error:
                raise MissingExtraError(f"the metric {self.name!r}", "classical") from error

    def __call__(self, distorted: Tensor, ref: Tensor) -> Tensor:
        """Return the distances of images to their references.

        `vif` and `mdsi` tell the two apart; to all others the order is the same.

        Args:
            distorted: `(N, 3, H, W)`, RGB in [-1, 1], floating point.
            ref: likewise.

        Returns:
            `(N,)`. Images with NaN have the distance NaN.

        Raises:
            ValueError: the shapes differ, the images are too small, or values are out of range.
        """
        return self.of_unit_images((distorted + 1) / 2, (ref + 1) / 2)

    def of_unit_images(self, distorted: Tensor, ref: Tensor) -> Tensor:
        """Return the distances `(N,)` of images whose values are in [0, 1]; otherwise like a call."""
        formula, smallest = _FORMULAS[self.name]
        if distorted.shape != ref.shape or ref.ndim != 4 or ref.shape[1] != 3:
            raise ValueError(
                f"{self.name} compares two batches (N, 3, H, W) of one shape, "
                f"got {tuple(distorted.shape)} and {tuple(ref.shape)}"
            )
        height, width = ref.shape[2:]
        if min(height, width) < smallest:
            raise ValueError(
                f"{self.name} needs images of at least {smallest} x {smallest} pixels, got {height} x {width}"
            )
        undefined = (distorted.isnan() | ref.isnan()).flatten(1).any(dim=1)
        with _FlatRoots():
            found = formula(_in_range(distorted), _in_range(ref))
        return found.masked_fill(undefined, torch.nan)


class _FlatRoots(TorchFunctionMode):
    """Gives roots the slope 0 at 0.

    Theirs is infinite, and infinity times the slope 0 of what lies inside is NaN.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in ("sqrt", "pow") or not _has_gradient(args[0]):
            return func(*args, **kwargs)
        base, *exponent = args
        if exponent and not isinstance(exponent[0], Tensor) and not 0 < exponent[0] < 1:
            return func(*args, **kwargs)
        zero = base == 0
        return func(torch.where(zero, 1.0, base), *exponent, **kwargs).masked_fill(zero, 0.0)


def _has_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled()


def _in_range(images: Tensor) -> Tensor:
    """Round values into [0, 1], where `piq` wants them. Gradients pass as if nothing had been done."""
    values = images.detach()
    if ((values < -_SLACK) | (values > 1 + _SLACK)).any():
        low, high = values.min().item(), values.max().item()
        raise ValueError(
            f"the images' values are out of range: on the [0, 1] scale they go from {low:.3g} to {high:.3g}"
        )
    return values.clamp(0, 1).nan_to_num(0) + (images - values).nan_to_num(0)


def _piq(function: str, best: float | None = None) -> "_Formula":
    """Return a distance by `piq`. A similarity becomes one: its `best` value minus the similarity."""

    def distance(distorted: Tensor, ref: Tensor) -> Tensor:
        import piq

        found: Tensor = getattr(piq, function)(distorted, ref, data_range=1.0, reduction="none")
        return (found if best is None else best - found).flatten()

    return distance


def _ms_ssim(distorted: Tensor, ref: Tensor) -> Tensor:
    import piq

    side = min(ref.shape[2:])
    fit = sum((_WINDOW - 1) * 2**scale < side for scale in range(len(_SCALES)))
    weights = None if fit == len(_SCALES) else ref.new_tensor(_SCALES[:fit])  # `piq` divides by their sum
    found: Tensor = piq.multi_scale_ssim(
        distorted, ref, data_range=1.0, reduction="none", scale_weights=weights
    )
    return 1 - found


def _haarpsi(distorted: Tensor, ref: Tensor) -> Tensor:
    # Two black images have no coefficients, and `piq` finds them infinitely similar. Two grey ones have some.
    black = ((distorted == 0) & (ref == 0)).flatten(1).all(dim=1).view(-1, 1, 1, 1)
    return _piq("haarpsi", best=1)(distorted.masked_fill(black, 0.5), ref.masked_fill(black, 0.5))


def _mse(distorted: Tensor, ref: Tensor) -> Tensor:
    return (distorted - ref).square().mean(dim=(1, 2, 3))


_Formula = Callable[[Tensor, Tensor], Tensor]

# For each name the distance of images in [0, 1], and the smallest side that it can measure.
_FORMULAS: dict[str, tuple[_Formula, int]] = {
    "ssim": (_piq("ssim", best=1), _WINDOW),
    "ms-ssim": (_ms_ssim, _WINDOW),
    "mse": (_mse, 1),
    "psnr": (_piq("psnr", best=80), 1),
    "haarpsi": (_haarpsi, 16),
    "fsim": (_piq("fsim", best=1), 2),
    "gmsd": (_piq("gmsd"), 3),
    "mdsi": (_piq("mdsi"), 2),
    "vsi": (_piq("vsi", best=1), 2),
    "vif": (_piq("vif_p", best=1), 41),
}

CLASSICAL = tuple(_FORMULAS)
"""The names of the metrics."""
