"""What is checked of the images that go into a metric."""

import warnings
from typing import Any

import torch
from torch import Tensor

_TOLERANCE = 1e-3  # rounding and projection steps may leave the range by this much without a warning


def check_images(in0: Tensor, in1: Tensor, *, like: Tensor, min_size: int) -> None:
    """Check all that can be told without looking at values.

    Args:
        in0: a batch of images `(N, 3, H, W)`.
        in1: another, of the same height and width, and the same `N` unless one of them is 1.
        like: a tensor of the module; the images must be on its device and of its dtype, or of a narrower one
            (any floating dtype under autocast).
        min_size: the least height and width.

    Raises:
        TypeError: not a tensor, or not of a usable dtype.
        ValueError: wrong number of dimensions or channels, too small, sizes that do not match, wrong device.
    """
    for name, image in (("in0", in0), ("in1", in1)):
        if not isinstance(image, Tensor):
            raise TypeError(f"{name} must be a tensor of shape (N, 3, H, W), got {type(image).__name__}")
        shape = tuple(image.shape)
        if image.ndim != 4:
            hint = "; add a batch dimension with x[None]" if image.ndim == 3 else ""
            raise ValueError(f"{name} must have shape (N, 3, H, W), got {shape}{hint}")
        if image.shape[1] != 3:
            hint = ""
            if image.shape[3] == 3:
                hint = "; the channels are last, move them with x.permute(0, 3, 1, 2)"
            elif image.shape[1] == 1:
                hint = "; repeat a grey channel with x.expand(-1, 3, -1, -1)"
            raise ValueError(f"{name} must have 3 channels, shape (N, 3, H, W), got {shape}{hint}")
        if not image.is_floating_point():
            hint = "; for bytes in [0, 255] use x / 127.5 - 1" if image.dtype == torch.uint8 else ""
            raise TypeError(f"{name} must be floating point, in [-1, 1], got {image.dtype}{hint}")
        if image.device != like.device:
            raise ValueError(
                f"{name} is on {image.device} but the metric is on {like.device}; move one with .to(device)"
            )
        if torch.promote_types(image.dtype, like.dtype) != like.dtype and not torch.is_autocast_enabled(
            image.device.type
        ):
            raise TypeError(
                f"{name} is {image.dtype} but the metric is {like.dtype}; convert one with .to(dtype)"
            )
        if image.shape[2] < min_size or image.shape[3] < min_size:
            raise ValueError(
                f"{name} must be at least {min_size} x {min_size} for this backbone, "
                f"got height {shape[2]} and width {shape[3]}"
            )
    if in0.shape[2:] != in1.shape[2:]:
        raise ValueError(
            "in0 and in1 must have the same height and width, "
            f"got {tuple(in0.shape[2:])} and {tuple(in1.shape[2:])}"
        )
    if in0.shape[0] != in1.shape[0] and in0.shape[0] != 1 and in1.shape[0] != 1:
        raise ValueError(
            "in0 and in1 must have the same batch size, or one of them a batch of 1, "
            f"got {in0.shape[0]} and {in1.shape[0]}"
        )


class RangeCheck:
    """Warns, once, of images that are not in the range which the metric expects.

    On the CPU the values are looked at right away. On a CUDA device their extremes are copied to the host
    asynchronously and looked at in a later call, when they have arrived, so no stream is ever synchronised.
    Nothing is checked while compiling, tracing or capturing, or where a transform hides the values.
    """

    def __init__(self) -> None:
        self.warned = False
        self._pending: tuple[torch.cuda.Event, bool] | None = None
        self._host: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"warned": self.warned, "_pending": None, "_host": None}

    def __call__(self, in0: Tensor, in1: Tensor, normalize: bool) -> None:
        """Check a pair of batches as they come to `forward`."""
        if self.warned or not in0.numel() or not in1.numel():
            return
        try:
            if in0.device.type == "cpu":
                self._judge(self._extremes(in0, in1), normalize)
            elif in0.device.type == "cuda":
                self._check_later(in0, in1, normalize)
        except RuntimeError:  # fake tensors and torch.func.vmap have no values to show
            return

    @staticmethod
    def _extremes(in0: Tensor, in1: Tensor) -> Tensor:
        return torch.stack([*torch.aminmax(in0.detach().float()), *torch.aminmax(in1.detach().float())])

    def _check_later(self, in0: Tensor, in1: Tensor, normalize: bool) -> None:
        if torch.cuda.is_current_stream_capturing():
            return
        if self._pending is not None:
            event, pending_normalize = self._pending
            if not event.query():  # type: ignore[no-untyped-call]
                return
            self._pending = None
            assert self._host is not None
            self._judge(self._host, pending_normalize)
        if self._host is None:
            self._host = torch.empty(4, pin_memory=True)
        with torch.cuda.device(in0.device):
            self._host.copy_(self._extremes(in0, in1), non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._pending = (event, normalize)

    def _judge(self, extremes: Tensor, normalize: bool) -> None:
        low0, high0, low1, high1 = extremes.tolist()
        message = ""
        for name, low, high in (("in0", low0, high0), ("in1", low1, high1)):
            least = 0.0 if normalize else -1.0
            if low != low:
                message = f"{name} holds NaN"
                break
            if not (low >= least - _TOLERANCE and high <= 1 + _TOLERANCE):
                flag = "with normalize=True" if normalize else "images"
                message = f"{name} has values in [{low:.4g}, {high:.4g}]; {flag} must lie in [{least:.0f}, 1]"
                break
        else:
            if not normalize and min(low0, low1) >= 0:
                message = (
                    "every value of in0 and in1 lies in [0, 1], but images are expected in [-1, 1]; "
                    "for images in [0, 1] pass normalize=True"
                )
        if message:
            self.warned = True
            message += ". This is said once; check_range=False switches the check off."
            # 6 frames up: _judge, __call__, LPIPS.forward, and two of nn.Module stand before the caller
            warnings.warn(message, UserWarning, stacklevel=6)
