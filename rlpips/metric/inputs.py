"""Checks of the images that go into a metric: shape, dtype, device, size and range of values."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_TOLERANCE = 1e-3  # rounding and projections may leave the range by this much
_CHANNELS_LAST = "the channels are last; move them with x.permute"


def as_batch(image: Tensor) -> Tensor:
    """Return grey images and single images as a batch `(N, 3, H, W)`, as `lpips` broadcasts them.

    Grey images are `(N, 1, H, W)`, single images `(3, H, W)`, `(1, H, W)` or `(H, W)`. Anything else, such as
    a batch of RGB images, is returned unchanged.
    """
    if not isinstance(image, Tensor) or not 2 <= image.ndim <= 4:
        return image
    channels = image.shape[-3] if image.ndim > 2 else 1
    if channels not in (1, 3) or (image.ndim == 4 and channels == 3):
        return image
    batch = image[(None,) * (4 - image.ndim)]
    return batch.expand(-1, 3, -1, -1) if channels == 1 else batch


def check_image(name: str, image: Tensor, *, like: Tensor, min_size: int, channels: int | None = 3) -> None:
    """Check everything about a batch of images except its values.

    Args:
        name: the name of the images in error messages.
        image: `(N, 3, H, W)`.
        like: a tensor of the metric. The images must be on its device and have its dtype or a narrower one
            (any floating dtype under autocast).
        min_size: the smallest height and width allowed.
        channels: the number of channels required; None accepts any.

    Raises:
        TypeError: the images are not a tensor or have no usable dtype.
        ValueError: the number of dimensions or channels is wrong, or the images are too small or on another
            device.
    """
    if not isinstance(image, Tensor):
        raise TypeError(f"{name} must be a tensor of shape (N, 3, H, W), got {type(image).__name__}")
    shape = tuple(image.shape)
    if image.ndim != 4:
        hint = ""
        if image.ndim == 3:
            if image.shape[2] == 3 and image.shape[0] != 3:
                hint = f"; {_CHANNELS_LAST}(2, 0, 1)"
            elif image.shape[0] in (1, 3):
                hint = "; add a batch dimension with x[None]"
        raise ValueError(f"{name} must have shape (N, 3, H, W), got {shape}{hint}")
    if channels is not None and image.shape[1] != channels:
        hint = ""
        if image.shape[3] == 3:
            hint = f"; {_CHANNELS_LAST}(0, 3, 1, 2)"
        elif image.shape[1] == 1:
            hint = "; repeat a grey channel with x.expand(-1, 3, -1, -1)"
        raise ValueError(
            f"{name} must have {channels} channels, shape (N, {channels}, H, W), got {shape}{hint}"
        )
    if not image.is_floating_point():
        hint = "; for bytes in [0, 255] use x / 127.5 - 1" if image.dtype == torch.uint8 else ""
        raise TypeError(f"{name} must be floating point, in [-1, 1], got {image.dtype}{hint}")
    if image.device != like.device:
        raise ValueError(
            f"{name} is on {image.device} but the metric is on {like.device}; move one with .to(device)"
        )
    fits = torch.promote_types(image.dtype, like.dtype) == like.dtype
    if not fits and not torch.is_autocast_enabled(image.device.type):
        raise TypeError(
            f"{name} is {image.dtype} but the metric is {like.dtype}; convert one with .to(dtype)"
        )
    if image.shape[2] < min_size or image.shape[3] < min_size:
        raise ValueError(
            f"{name} must be at least {min_size} x {min_size} for this backbone, "
            f"got height {shape[2]} and width {shape[3]}"
        )


def check_pair(
    shape0: Sequence[int], shape1: Sequence[int], *, names: Sequence[str] = ("in0", "in1")
) -> None:
    """Check that two batches `(N, 3, H, W)` have the same size, and the same `N` or an `N` of 1.

    Raises:
        ValueError: the batches cannot be compared.
    """
    if tuple(shape0[2:]) != tuple(shape1[2:]):
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same height and width, "
            f"got {tuple(shape0[2:])} and {tuple(shape1[2:])}"
        )
    if shape0[0] != shape1[0] and shape0[0] != 1 and shape1[0] != 1:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same batch size, or one of them a batch of 1, "
            f"got {shape0[0]} and {shape1[0]}"
        )


def check_range(images: dict[str, Tensor], normalize: bool, *, beyond: bool = False) -> str:
    """Check the values of batches of images. On a GPU this waits for the values.

    Args:
        images: the batches, by their names.
        normalize: the images are in [0, 1].
        beyond: accept finite values above 1.

    Returns:
        A message about values above 1 that were accepted; empty if there are none.

    Raises:
        ValueError: a value is NaN or outside [-1, 1], or [0, 1] with `normalize`.
    """
    images = {name: image for name, image in images.items() if image.numel()}
    if not images:
        return ""
    names, extremes = list(images), _extremes(images)
    message = _out_of_range(names, extremes, normalize)
    within = extremes.clamp(max=1.0) if beyond and extremes[:, 1].isfinite().all() else extremes
    if message and _out_of_range(names, within, normalize):
        raise ValueError(message)
    return message


def _extremes(images: dict[str, Tensor]) -> Tensor:
    """Return the smallest and the largest value of each batch, `(len(images), 2)`."""
    return torch.stack([torch.stack(torch.aminmax(image.detach().float())) for image in images.values()])


def _out_of_range(names: list[str], extremes: Tensor, normalize: bool) -> str:
    """Return a message about the first batch that is out of range; empty if there is none."""
    least = -1.0 + normalize
    for name, (low, high) in zip(names, extremes.tolist(), strict=True):
        if low != low:
            return f"{name} holds NaN"
        if not (low >= least - _TOLERANCE and high <= 1 + _TOLERANCE):
            flag = "with normalize=True" if normalize else "images"
            return f"{name} has values in [{low:.4g}, {high:.4g}]; {flag} must lie in [{least:.0f}, 1]"
    return ""


class RangeCheck:
    """Warn once if images are out of the range that the metric expects.

    On the CPU, values are checked at once. On a CUDA device, their extremes are copied to the host
    asynchronously and checked in a later call, when they have arrived, so the check never synchronises.
    Compiling, tracing, capturing a graph and transforms that hide the values switch the check off.
    """

    def __init__(self) -> None:
        self.warned = False
        self._pending: tuple[torch.cuda.Event, Tensor, list[str], bool] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"warned": self.warned, "_pending": None}

    def __call__(self, images: dict[str, Tensor], normalize: bool) -> None:
        """Check batches of images, by the names that `forward` gives them."""
        if self.warned or not images or not all(image.numel() for image in images.values()):
            return
        device = next(iter(images.values())).device
        try:
            if device.type == "cpu":
                self._warn(_extremes(images), list(images), normalize)
            elif device.type == "cuda":
                self._check_later(images, normalize, device)
        except RuntimeError:  # fake tensors and those in torch.func.vmap show no values
            return

    def _check_later(self, images: dict[str, Tensor], normalize: bool, device: torch.device) -> None:
        if torch.cuda.is_current_stream_capturing():
            return
        if self._pending is not None:
            event, extremes, names, pending_normalize = self._pending
            if not event.query():  # type: ignore[no-untyped-call]
                return
            self._pending = None
            self._warn(extremes, names, pending_normalize)
        host = torch.empty(len(images), 2, pin_memory=True)
        with torch.cuda.device(device):
            host.copy_(_extremes(images), non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._pending = (event, host, list(images), normalize)

    def _warn(self, extremes: Tensor, names: list[str], normalize: bool) -> None:
        message = _out_of_range(names, extremes, normalize)
        if not message and not normalize and extremes.min() >= 0:
            message = (
                f"every value of {' and '.join(names)} lies in [0, 1], but images are expected "
                "in [-1, 1]; for images in [0, 1] pass normalize=True"
            )
        if message:
            self.warned = True
            message += ". This warning is shown once; check_range=False switches the check off."
            # the caller is 7 frames up, above _warn, __call__, LPIPS._check, forward and two of nn.Module
            warnings.warn(message, UserWarning, stacklevel=7)
