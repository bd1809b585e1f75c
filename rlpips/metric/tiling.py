"""Evaluation in tiles: the same distances in the memory of one tile, for images too large to be run whole.

An activation depends on the pixels of its receptive field alone, so a crop of the image yields it as the
whole image does, wherever that field does not reach beyond a side of the crop which is not one of the image.
Crops begin at multiples of the backbone's stride, where their activations lie as those of the whole. Every
position of every layer belongs to one tile, whose crop is wide enough for the fields of all that it owns.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlpips.backbones.architectures import Backbone, Fire

Measure = Callable[[Tensor, Tensor], Sequence[Tensor]]


class Field(NamedTuple):
    """Along either axis, a layer's position i sees `size` pixels, from `i * stride - before` on."""

    stride: int
    before: int
    size: int


def fields(net: Backbone) -> list[Field]:
    """Return the receptive field of each slice of a backbone, from the layers it is made of."""
    stride, before, size = 1, 0, 1
    found = []
    for part in net.children():
        # A Fire counts as a chain: one of the two branches is a 1x1 convolution, which widens nothing
        for layer in _layers(part):
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
                before += _side(layer.padding) * stride
                size += (_side(layer.kernel_size) - 1) * stride
                stride *= _side(layer.stride)
        found.append(Field(stride, before, size))
    return found


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers in a module, of which the receptive field is known."""
    if type(module) in (nn.Sequential, Fire):
        for part in module.children():
            yield from _layers(part)
    elif isinstance(module, nn.MaxPool2d | nn.ReLU | nn.Identity) or (
        isinstance(module, nn.Conv2d) and set(module.dilation) == {1}
    ):
        yield module
    else:
        raise ValueError(
            f"tile= needs the receptive field of every layer of the backbone, and knows none of a "
            f"{type(module).__name__} that has been put into it; measure without tile="
        )


def _side(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple) else value)


class Span(NamedTuple):
    """A tile along one axis.

    Attributes:
        crop: the pixels that it needs.
        owned: for each layer, the positions that are its own.
        within: the same, counted from where the crop begins.
    """

    crop: slice
    owned: list[slice]
    within: list[slice]


def spans(length: int, tile: int, seen: Sequence[Field]) -> list[Span]:
    """Cut an axis of `length` pixels into tiles of one size, at most `tile` rounded up to whole strides."""
    stride = max(field.stride for field in seen)
    before = max(field.before for field in seen)
    after = max(field.size - field.stride - field.before for field in seen)
    even = -(-length // -(-length // tile))
    step = -(-even // stride) * stride
    found = []
    for start in range(0, length, step):
        end = start + step
        first = max(0, (start - before) // stride * stride)
        owned, within = (
            [
                slice((start - origin) // f.stride, (end - origin) // f.stride if end < length else None)
                for f in seen
            ]
            for origin in (0, first)
        )
        found.append(Span(slice(first, min(length, end + after)), owned, within))
    return found


def in_tiles(
    measure: Measure,
    net: Backbone,
    in0: Tensor,
    in1: Tensor,
    tile: int,
    parameters: Sequence[Tensor],
    *,
    average: bool,
) -> list[Tensor]:
    """Return what `measure(in0, in1)` does, from one crop of the images at a time, in the backward pass too.

    Args:
        measure: returns one map `(N, 1, h, w)` for each slice of the backbone; it must be the same function
            whenever it is called, so without dropout.
        net: the backbone that it runs.
        in0: `(N, 3, H, W)`; either batch may be of one image.
        in1: likewise.
        tile: the side of a tile in pixels, without the margin that its crop adds.
        parameters: of `measure`; gradients flow to those that require them, as to the images.
        average: return the average of each map, `(N, 1, 1, 1)`, so that none is ever held whole.

    Raises:
        ValueError: `tile` is not a positive int.
        RuntimeError: in the backward pass, a second derivative is asked for.
    """
    if not isinstance(tile, int) or isinstance(tile, bool) or tile < 1:
        raise ValueError(f"tile must be a positive whole number of pixels, or None, got {tile!r}")
    seen = fields(net)
    rows, columns = (spans(length, tile, seen) for length in in0.shape[2:])
    return list(_InTiles.apply(measure, rows, columns, average, in0, in1, *parameters))


def _owned(measure: Measure, row: Span, column: Span, crop0: Tensor, crop1: Tensor) -> list[Tensor]:
    """Measure the crops of one tile and return of each map what is the tile's own."""
    maps = measure(crop0, crop1)
    return [
        each[..., down, across] for each, down, across in zip(maps, row.within, column.within, strict=True)
    ]


class _InTiles(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        measure: Measure,
        rows: Sequence[Span],
        columns: Sequence[Span],
        average: bool,
        in0: Tensor,
        in1: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.measure, ctx.rows, ctx.columns, ctx.average = measure, rows, columns, average
        ctx.save_for_backward(in0, in1, *parameters)
        device = in0.device.type
        # for the backward pass, which runs outside; a cache would keep weights cast without their graph
        ctx.autocast = torch.autocast(
            device,
            torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        )
        bands = []
        sums: list[Any] = [0] * len(rows[0].owned)
        counts = [0] * len(sums)
        with ctx.autocast:
            for row in rows:
                tiles = []
                for column in columns:
                    crops = (x[..., row.crop, column.crop] for x in (in0, in1))
                    pieces = _owned(measure, row, column, *crops)
                    if average:
                        sums = [
                            a + each.sum((2, 3), keepdim=True) for a, each in zip(sums, pieces, strict=True)
                        ]
                        counts = [n + each.shape[2:].numel() for n, each in zip(counts, pieces, strict=True)]
                    else:  # copies: a view would keep the map of the whole crop
                        tiles.append([each.clone() for each in pieces])
                if not average:
                    bands.append([torch.cat(pieces, dim=3) for pieces in zip(*tiles, strict=True)])
        ctx.counts = counts
        if average:
            return tuple(total / count for total, count in zip(sums, counts, strict=True))
        return tuple(torch.cat(pieces, dim=2) for pieces in zip(*bands, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a gradient without a graph would pass for a constant
            raise RuntimeError(
                "tiles have no second derivatives; measure without tile=, or leave create_graph out"
            )
        inputs = ctx.saved_tensors
        needed = [k for k in range(len(inputs)) if ctx.needs_input_grad[4 + k]]
        found = {k: torch.zeros_like(inputs[k]) for k in needed}
        for row, column in itertools.product(ctx.rows, ctx.columns):
            area = (..., row.crop, column.crop)
            crops = [inputs[k].detach()[area].requires_grad_(k in found) for k in (0, 1)]
            with torch.enable_grad(), ctx.autocast:
                maps = _owned(ctx.measure, row, column, *crops)
            if ctx.average:
                each = zip(grads, ctx.counts, maps, strict=True)
                due = [(grad / count).expand_as(part) for grad, count, part in each]
            else:
                owned = zip(grads, row.owned, column.owned, strict=True)
                due = [grad[..., down, across] for grad, down, across in owned]
            leaves = [*crops, *inputs[2:]]
            shares = torch.autograd.grad(maps, [leaves[k] for k in needed], due)
            for k, share in zip(needed, shares, strict=True):
                (found[k][area] if k < 2 else found[k]).add_(share)
        return None, None, None, None, *(found.get(k) for k in range(len(inputs)))
