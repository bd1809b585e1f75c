"""The distance of two activations that LPIPS takes at every layer: as a formula, and the same in less memory.

On a CPU the formula's time is that of moving temporaries of the activations' size through memory. `fused`
works on blocks that stay in cache, and keeps nothing for the backward pass but the activations themselves and
their lengths, from which it computes the rest again.
"""

from typing import Any

import torch
from torch import Tensor

from rlpips.system.autograd import eager, transforming

EPS = 1e-10
NOTHING = 1e-27  # a length that is lost in the rounding of EPS, in float64 too
BLOCK = 1 << 18  # values: a mebibyte in float32


def normalize_tensor(in_feat: Tensor, eps: float = EPS) -> Tensor:
    """Scale activations to unit length over channels, `f / (|f| + eps)`, with finite gradients at `f = 0`.

    Args:
        in_feat: `(N, C, H, W)`, floating point.
        eps: added to the length.

    Returns:
        The same shape and dtype. A vector of zeros stays zero. The length of zeros, or one that is lost
        beside `eps`, counts as a constant 0: that is the limit of the gradient, where differentiating the
        square root would give NaN.

    >>> normalize_tensor(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)).flatten()
    tensor([0.6000, 0.8000])
    """
    square = in_feat.square().sum(dim=1, keepdim=True)
    # what rounding takes from eps anyway; second derivatives of so small a length leave the range of floats
    nothing = square <= (torch.finfo(in_feat.dtype).eps / 8 * eps) ** 2
    length = square.masked_fill(nothing, 1).sqrt().masked_fill(nothing, 0)
    return in_feat * (1 / (length + eps))  # a product has a cheaper derivative than a quotient


def wide(f: Tensor) -> Tensor:
    """Return activations in float32 at least."""
    return f.to(torch.promote_types(f.dtype, torch.float32))


def squares(f0: Tensor, f1: Tensor) -> Tensor:
    """Return squared differences of activations of unit length, in float32 at least.

    Args:
        f0: activations `(N, C, h, w)`; either batch may be of one image.
        f1: likewise.
    """
    return (normalize_tensor(wide(f0)) - normalize_tensor(wide(f1))).square()


def weigh(squared: Tensor, weight: Tensor) -> Tensor:
    """Sum `(N, C, h, w)` over channels, each weighed by one of `(C,)`, to `(N, 1, h, w)`."""
    return (squared * weight.view(-1, 1, 1)).sum(dim=1, keepdim=True)


def plain(f0: Tensor, f1: Tensor, weight: Tensor) -> Tensor:
    """Return the distance at every position, `(N, 1, h, w)`: the formula."""
    return weigh(squares(f0, f1), weight)


def lengths(f: Tensor) -> Tensor:
    """Return the lengths of activations over channels, `(N, 1, h, w)`, as constants."""
    f = f.detach()
    dtype = torch.promote_types(f.dtype, torch.float32)
    if f.dtype == dtype or f.device.type != "cpu" or not eager():
        length: Tensor = torch.linalg.vector_norm(f, dim=1, keepdim=True, dtype=dtype)
        return length
    rows = _rows(f)  # in blocks, as a CPU copies to the wider dtype first
    length = rows.new_empty((len(rows), 1), dtype=dtype)
    for block in _blocks(rows):
        torch.linalg.vector_norm(rows[block], dim=1, keepdim=True, dtype=dtype, out=length[block])
    return length.view(f.shape[0], 1, *f.shape[2:])


def fusible(*tensors: Tensor) -> bool:
    """Whether `fused` may stand for `plain`."""
    return eager() and len({tensor.shape for tensor in tensors}) <= 1


def fused(f0: Tensor, length0: Tensor, f1: Tensor, length1: Tensor, weight: Tensor) -> Tensor:
    """Compute `plain` with the activations' `lengths`, `(N, 1, h, w)`, which count as functions of them."""
    distance: Tensor = _Fused.apply(f0, length0, f1, length1, weight)
    return distance


def _rows(f: Tensor) -> Tensor:
    """View `(N, C, h, w)` as `(N * h * w, C)`; it is a copy unless memory is channels-last."""
    return f.permute(0, 2, 3, 1).flatten(0, 2)


def _blocks(rows: Tensor) -> list[slice]:
    step = max(1, BLOCK // rows.shape[1] if rows.device.type == "cpu" else len(rows))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f0: Tensor, length0: Tensor, f1: Tensor, length1: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(f0, length0, f1, length1, weight)
        rows0, rows1 = _rows(f0), _rows(f1)
        inverse0, inverse1 = (1 / (_rows(length) + EPS) for length in (length0, length1))
        out = torch.empty_like(inverse0)
        for block in _blocks(rows0):
            difference = rows0[block] * inverse0[block]
            difference -= rows1[block] * inverse1[block]
            # not a matrix product, which autocast would round
            torch.sum(difference.square_().mul_(weight), dim=1, keepdim=True, out=out[block])
        return out.view(length0.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        f0, length0, f1, length1, weight = ctx.saved_tensors
        batched = torch._C._functorch.is_legacy_batchedtensor(grad)  # by is_grads_batched
        if torch.is_grad_enabled() or transforming() or batched:
            return _plain_backward(ctx.needs_input_grad, f0, f1, weight, grad)
        rows = _rows(f0), _rows(f1)
        long = _rows(length0), _rows(length1)
        inverse = [1 / (length + EPS) for length in long]
        # the share of a change along its vector, which the change of length takes back; of lengths that are
        # nothing beside EPS it is nothing, as where squares overflow, and the quotient may not be finite
        along = [inv / length for inv, length in zip(inverse, long, strict=True)]
        lost = [(length < NOTHING) | length.isinf() for length in long]
        needed = [k for k in (0, 1) if ctx.needs_input_grad[2 * k]]
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[4] else None
        found = {k: torch.empty_like(rows[k]) for k in needed}
        scale = {0: 2 * _rows(grad), 1: -2 * _rows(grad)}
        for block in _blocks(rows[0]):
            change = rows[0][block] * inverse[0][block]
            change -= rows[1][block] * inverse[1][block]
            if to_weight is not None:
                to_weight += (change.square() * scale[0][block]).sum(dim=0) / 2
            change *= weight
            for k in needed:
                f, factor, inv = rows[k][block], scale[k][block], inverse[k][block]
                share = (f * change).sum(dim=1, keepdim=True)
                # one factor at a time, as the product of the two leaves the range of floats
                share.mul_(inv).mul_(along[k][block]).mul_(factor).masked_fill_(lost[k][block], 0)
                new = change * (inv * factor)
                torch.addcmul(new, f, share, value=-1, out=found[k][block])
        count, _, height, width = f0.shape
        first, second = (
            found[k].view(count, height, width, -1).permute(0, 3, 1, 2) if k in needed else None
            for k in (0, 1)
        )
        return first, None, second, None, to_weight


def _plain_backward(
    needed: tuple[bool, ...], f0: Tensor, f1: Tensor, weight: Tensor, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Differentiate the formula, for derivatives of higher order."""
    wanted = [k for k in (0, 2, 4) if needed[k]]
    with torch.enable_grad():
        # apart even where both are one tensor
        inputs = {0: f0.view_as(f0), 2: f1.view_as(f1), 4: weight.view_as(weight)}
        value = plain(inputs[0], inputs[2], inputs[4])
        found = torch.autograd.grad(value, [inputs[k] for k in wanted], grad, create_graph=True)
    gradients = dict(zip(wanted, found, strict=True))
    return tuple(gradients.get(k) for k in range(5))
