"""One layer's map of distances as one operation with a derivative of its own, in less time and memory.

On a CPU, the formula spends its time on moving temporary tensors through memory. The fused operation works on
blocks that fit into the cache. For the backward pass it keeps only the features and their lengths, and
computes the rest again.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlpips.metric.formula import EPS, layer_map, weighted_sum
from rlpips.system.autograd import eager, transforming

BLOCK = 1 << 18  # values in a block: 1 MiB in float32
ROUNDING_FLOOR = 1e-27  # adding EPS rounds shorter lengths away, in float64 too


def channel_lengths(f: Tensor, floor: Tensor | None = None) -> Tensor:
    """Return the lengths of features over channels, `(N, 1, h, w)`, as constants, in float32 or float64.

    With a floor, a scalar, `sqrt(|f|² + floor²)`.
    """
    length = _channel_lengths(f)
    return length if floor is None else length.hypot(floor.detach().to(length.dtype))


def _channel_lengths(f: Tensor) -> Tensor:
    f = f.detach()
    dtype = torch.promote_types(f.dtype, torch.float32)
    if f.dtype == dtype or f.device.type != "cpu" or not eager():
        length: Tensor = torch.linalg.vector_norm(f, dim=1, keepdim=True, dtype=dtype)
        return length
    rows = _rows(f)  # in blocks, because a CPU copies 16-bit values to the wider dtype first
    length = rows.new_empty((len(rows), 1), dtype=dtype)
    for block in _blocks(rows):
        torch.linalg.vector_norm(rows[block], dim=1, keepdim=True, dtype=dtype, out=length[block])
    return length.view(f.shape[0], 1, *f.shape[2:])


def fused_layer_map(
    f0: Tensor, length0: Tensor, f1: Tensor, length1: Tensor, weight: Tensor, floor: Tensor | None = None
) -> Tensor:
    """Return the map of distances of one layer, `(N, 1, h, w)`, with derivatives of any order.

    Args:
        f0: features `(N, C, h, w)`.
        length0: their lengths, from `channel_lengths`. They count as functions of the features.
        f1: features of the same shape.
        length1: their lengths.
        weight: one weight per channel, `(C,)`, in float32 or float64.
        floor: that of the lengths, a scalar, which counts as a constant.
    """
    fused: Tensor = _FusedLayerMap.apply(f0, length0, f1, length1, weight, floor)
    return fused


def _rows(f: Tensor) -> Tensor:
    """Return `(N, C, h, w)` as `(N * h * w, C)`: a view of channels-last memory, a copy of any other."""
    return f.permute(0, 2, 3, 1).flatten(0, 2)


def _blocks(rows: Tensor) -> list[slice]:
    """Cut rows into blocks that fit into a CPU's cache; on other devices, all rows are one block."""
    step = max(1, BLOCK // rows.shape[1] if rows.device.type == "cpu" else len(rows))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


class _FusedLayerMap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        f0: Tensor,
        length0: Tensor,
        f1: Tensor,
        length1: Tensor,
        weight: Tensor,
        floor: Tensor | None,
    ) -> Tensor:
        ctx.floor = floor
        ctx.save_for_backward(f0, length0, f1, length1, weight)
        rows0, rows1 = _rows(f0), _rows(f1)
        inverse0, inverse1 = (1 / (_rows(length) + EPS) for length in (length0, length1))
        out = torch.empty_like(inverse0)
        for block in _blocks(rows0):
            difference = rows0[block] * inverse0[block]
            difference -= rows1[block] * inverse1[block]
            # not a matrix product, because autocast would round it
            torch.sum(difference.square_().mul_(weight), dim=1, keepdim=True, out=out[block])
        return out.view(length0.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        f0, length0, f1, length1, weight = ctx.saved_tensors
        batched = torch._C._functorch.is_legacy_batchedtensor(grad)  # with is_grads_batched=True
        if torch.is_grad_enabled() or transforming() or batched:
            return _formula_backward(ctx.needs_input_grad, f0, f1, weight, ctx.floor, grad)
        rows = _rows(f0), _rows(f1)
        lengths = [_rows(length) for length in (length0, length1)]
        inverses = [1 / (length + EPS) for length in lengths]
        # Scaling to unit length removes the part of the gradient along each vector. The part is 0 where EPS
        # rounds the length away, and where squares overflow; the quotient may not be finite there.
        quotients = [inverse / length for inverse, length in zip(inverses, lengths, strict=True)]
        without_part = [(length < ROUNDING_FLOOR) | length.isinf() for length in lengths]
        needed = [k for k in (0, 1) if ctx.needs_input_grad[2 * k]]
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[4] else None
        grad_rows = {k: torch.empty_like(rows[k]) for k in needed}
        factors = {0: 2 * _rows(grad), 1: -2 * _rows(grad)}
        for block in _blocks(rows[0]):
            difference = rows[0][block] * inverses[0][block]
            difference -= rows[1][block] * inverses[1][block]
            if grad_weight is not None:
                grad_weight += (difference.square() * factors[0][block]).sum(dim=0) / 2
            difference *= weight
            for k in needed:
                f, factor, inverse = rows[k][block], factors[k][block], inverses[k][block]
                along = (f * difference).sum(dim=1, keepdim=True)
                # one factor at a time, because the product of two may overflow
                along.mul_(inverse).mul_(quotients[k][block]).mul_(factor)
                along.masked_fill_(without_part[k][block], 0)
                across = difference * (inverse * factor)
                torch.addcmul(across, f, along, value=-1, out=grad_rows[k][block])
        count, _, height, width = f0.shape
        grad_f0, grad_f1 = (
            grad_rows[k].view(count, height, width, -1).permute(0, 3, 1, 2) if k in needed else None
            for k in (0, 1)
        )
        return grad_f0, None, grad_f1, None, grad_weight, None


def _formula_backward(
    needed: tuple[bool, ...], f0: Tensor, f1: Tensor, weight: Tensor, floor: Tensor | None, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Differentiate the formula instead, which can be differentiated again."""
    wanted = [k for k in (0, 2, 4) if needed[k]]
    with torch.enable_grad():
        # views, so that f0 and f1 are two inputs even if they are one tensor
        inputs = {0: f0.view_as(f0), 2: f1.view_as(f1), 4: weight.view_as(weight)}
        value = layer_map(inputs[0], inputs[2], partial(weighted_sum, weight=inputs[4]), floor)
        found = torch.autograd.grad(value, [inputs[k] for k in wanted], grad, create_graph=True)
    gradients = dict(zip(wanted, found, strict=True))
    return tuple(gradients.get(k) for k in range(6))
