"""Messages about sizes of images that cannot be measured."""

from collections.abc import Sequence

from rlpips.metric.lpips import LPIPS


def sizes_differ(size_a: Sequence[int], size_b: Sequence[int]) -> str:
    """Return the message for two sizes (..., H, W) that differ."""
    return f"the images differ in size: {_pixels(size_a)} and {_pixels(size_b)} pixels (height x width)"


def too_small(size: Sequence[int], metric: LPIPS) -> str:
    """Return the message for a size (..., H, W) that is too small for the metric, or '' if it is not."""
    if min(size[-2:]) >= metric.min_size:
        return ""
    least = f"{metric.min_size} x {metric.min_size}"
    return f"{_pixels(size)} pixels are too few, this backbone needs {least} (height x width)"


def _pixels(size: Sequence[int]) -> str:
    """Write a size (..., H, W) in the order that `--resize` takes."""
    return f"{size[-2]} x {size[-1]}"
