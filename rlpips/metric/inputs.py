"""What is checked of the images that go into a metric."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_TOLERANCE = 1e-3  # rounding and projection steps may leave the range by this much without a warning
_CHANNELS_LAST = "the channels are last, move them with x.permute"


def as_batch(image: Tensor) -> Tensor:
    """View grey images and single ones as a batch `(N, 3, H, W)`, as they broadcast in `lpips`.

    Grey images are `(N, 1, H, W)`, single ones `(3, H, W)`, `(1, H, W)` or `(H, W)`. Anything else, such as a
    batch of RGB images, is returned as it is.
    """
    if not isinstance(image, Tensor) or not 2 <= image.ndim <= 4:
        return image
    channels = image.shape[-3] if image.ndim > 2 else 1
    if channels not in (1, 3) or (image.ndim == 4 and channels == 3):
        return image
    batch = image[(None,) * (4 - image.ndim)]
    return batch.expand(-1, 3, -1, -1) if channels == 1 else batch


def check_image(name: str, image: Tensor, *, like: Tensor, min_size: int, channels: int | None = 3) -> None:
    """Check all of a batch of images that can be told without looking at values.

    Args:
        name: what error messages call it.
        image: `(N, 3, H, W)`.
        like: a tensor of the module; the images must be on its device and of its dtype, or of a narrower one
            (any floating dtype under autocast).
        min_size: the least height and width.
        channels: how many there must be; None leaves that to the module.

    Raises:
        TypeError: not a tensor, or not of a usable dtype.
        ValueError: wrong number of dimensions or channels, too small, wrong device.
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
    """Check that two batches `(N, 3, H, W)` can be compared: one size, and one `N` or an `N` of 1.

    Raises:
        ValueError: they cannot.
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
    """Check the values of batches of images, by their names. On a GPU this waits for them.

    Args:
        images: the batches.
        normalize: they are in [0, 1].
        beyond: let finite values above 1 pass.

    Returns:
        A message about values above 1 that passed; empty if there are none.

    Raises:
        ValueError: a value is NaN or not in [-1, 1], or [0, 1] with `normalize`.
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
    """Return the least and greatest value of each batch, `(len(images), 2)`."""
    return torch.stack([torch.stack(torch.aminmax(image.detach().float())) for image in images.values()])


def _out_of_range(names: list[str], extremes: Tensor, normalize: bool) -> str:
    """Say which batch is not in range; say nothing if all are."""
    least = -1.0 + normalize
    for name, (low, high) in zip(names, extremes.tolist(), strict=True):
        if low != low:
            return f"{name} holds NaN"
        if not (low >= least - _TOLERANCE and high <= 1 + _TOLERANCE):
            flag = "with normalize=True" if normalize else "images"
            return f"{name} has values in [{low:.4g}, {high:.4g}]; {flag} must lie in [{least:.0f}, 1]"
    return ""


class RangeCheck:
    """Warns, once, of images that are not in the range which the metric expects.

    On the CPU the values are looked at right away. On a CUDA device their extremes are copied to the host
    asynchronously and looked at in a later call, when they have arrived, so no stream is ever synchronised.
    Nothing is checked while compiling, tracing or capturing, or where a transform hides the values.
    """

    def __init__(self) -> None:
        self.warned = False
        self._pending: tuple[torch.cuda.Event, Tensor, list[str], bool] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"warned": self.warned, "_pending": None}

    def __call__(self, images: dict[str, Tensor], normalize: bool) -> None:
        """Check batches as they come to `forward`, by their names there."""
        if self.warned or not images or not all(image.numel() for image in images.values()):
            return
        device = next(iter(images.values())).device
        try:
            if device.type == "cpu":
                self._judge(_extremes(images), list(images), normalize)
            elif device.type == "cuda":
                self._check_later(images, normalize, device)
        except RuntimeError:  # fake tensors and torch.func.vmap have no values to show
            return

    def _check_later(self, images: dict[str, Tensor], normalize: bool, device: torch.device) -> None:
        if torch.cuda.is_current_stream_capturing():
            return
        if self._pending is not None:
            event, extremes, names, pending_normalize = self._pending
            if not event.query():  # type: ignore[no-untyped-call]
                return
            self._pending = None
            self._judge(extremes, names, pending_normalize)
        host = torch.empty(len(images), 2, pin_memory=True)
        with torch.cuda.device(device):
            host.copy_(_extremes(images), non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._pending = (event, host, list(images), normalize)

    def _judge(self, extremes: Tensor, names: list[str], normalize: bool) -> None:
        message = _out_of_range(names, extremes, normalize)
        if not message and not normalize and extremes.min() >= 0:
            message = (
                f"every value of {' and '.join(names)} lies in [0, 1], but images are expected "
                "in [-1, 1]; for images in [0, 1] pass normalize=True"
            )
        if message:
            self.warned = True
            message += ". This is said once; check_range=False switches the check off."
            # 7 frames up: _judge, __call__, LPIPS._check, a method of LPIPS, and two of nn.Module come before
            warnings.warn(message, UserWarning, stacklevel=7)
