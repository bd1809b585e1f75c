"""Max pooling that stores no positions for the backward pass."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from rlpips.system.autograd import eager


class MaxPool2d(nn.MaxPool2d):
    """Max pooling. The backward pass finds the positions of the maxima again, so that nothing stores them."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool `(N, C, H, W)`."""
        pooled: Tensor
        if torch.is_grad_enabled() and x.requires_grad and eager():
            pooled = _PoolWithoutPositions.apply(
                x, (self.kernel_size, self.stride, self.padding, 1, self.ceil_mode)
            )
        else:
            pooled = super().forward(x)
        return pooled


class _PoolWithoutPositions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.window = window
        pooled: Tensor = F.max_pool2d(x, *window)
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        window = _per_axis(ctx.window)
        with torch.no_grad():
            _, positions = torch.ops.aten.max_pool2d_with_indices(x, *window)
        grad_x: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *window, positions)
        return grad_x, None


def _per_axis(window: tuple[Any, ...]) -> tuple[Any, ...]:
    """Write a window's numbers for height and width each, as the operators take them."""
    return (*([each, each] for each in window[:4]), window[4])
