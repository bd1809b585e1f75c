"""Evaluation in tiles: the same layer maps in the memory of one tile, for images of any size.

A feature depends only on the pixels in its receptive field. So a crop gives the same feature as the whole
image if the field does not cross a side of the crop inside the image. Crops start at multiples of the
backbone's stride, so that their features lie on the grid of the whole image's features. Each position of each
layer belongs to one tile, whose crop covers the receptive fields of all positions of the tile.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from rlpips.backbones.architectures import Backbone, Fire
from rlpips.backbones.pixels import BLOCK, STRIDE, PixelFeatures
from rlpips.metric.reference import Reference

if TYPE_CHECKING:
    from rlpips.metric.lpips import LPIPS

LayerMaps = Callable[[Tensor, Tensor], Sequence[Tensor]]


def in_tiles(
    layer_maps: LayerMaps, metric: "LPIPS", in0: Tensor | Reference, in1: Tensor | Reference, tile: int
) -> list[Tensor]:
    """Return what `layer_maps(in0, in1)` returns, computed one tile at a time, in the backward pass too.

    Without `metric.spatial`, return the average of each map, `(N, 1, 1, 1)`, so that no map is held whole.

    Args:
        layer_maps: returns a map of distances `(N, 1, h, w)` for each layer of the metric.
        metric: the metric. Gradients flow to its parameters and to the images.
        in0: `(N, 3, H, W)`; either batch may hold one image.
        in1: likewise.
        tile: the side of a tile in pixels, without the margin that its crop adds.

    Raises:
        TypeError: an input is a reference.
        ValueError: `tile` is not a positive int, the backbone is not one of this package, or dropout runs.
        RuntimeError: in the backward pass, if a second derivative is asked for.
    """
    if isinstance(in0, Reference) or isinstance(in1, Reference):
        raise TypeError("a reference holds the features of whole images; with tile=, pass the images")
    if type(metric.net) is not Backbone:
        raise ValueError("tile= needs a backbone of this package, but net has been replaced")
    if metric.lpips and any(isinstance(m, nn.Dropout) and m.training for m in metric.lins.modules()):
        raise ValueError(
            "tile= does not work with dropout: the backward pass runs tiles again, and dropout would fall "
            "differently; call .eval() first, or create the metric with use_dropout=False"
        )
    if not isinstance(tile, int) or isinstance(tile, bool) or tile < 1:
        raise ValueError(f"tile must be a positive whole number of pixels, or None, got {tile!r}")
    fields = receptive_fields(metric.net) + pixel_fields(metric.pixels)
    rows, columns = (tile_spans(length, tile, fields) for length in in0.shape[2:])
    average = not metric.spatial
    return list(_InTiles.apply(layer_maps, rows, columns, average, in0, in1, *metric.parameters()))


class ReceptiveField(NamedTuple):
    """The receptive field of a layer along one axis.

    Position i of the layer depends on `size` pixels, starting at pixel `i * stride - before`.
    """

    stride: int
    before: int
    size: int


def receptive_fields(net: Backbone) -> list[ReceptiveField]:
    """Compute the receptive field of each slice of a backbone from its layers."""
    stride, before, size = 1, 0, 1
    fields = []
    for part in net.children():
        # a Fire counts as a chain of layers: one of its branches is a 1x1 convolution, which widens nothing
        for layer in _layers(part):
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
                before += _along_axis(layer.padding) * stride
                size += (_along_axis(layer.kernel_size) - 1) * stride
                stride *= _along_axis(layer.stride)
        fields.append(ReceptiveField(stride, before, size))
    return fields


def pixel_fields(pixels: PixelFeatures | None) -> list[ReceptiveField]:
    """Return the receptive field of each scale of the pixels' features."""
    scales = range(0 if pixels is None else pixels.scales)
    return [ReceptiveField(2**scale * STRIDE, 0, 2**scale * BLOCK) for scale in scales]


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers in a module that have a known receptive field; raise an error for any other."""
    if type(module) in (nn.Sequential, Fire):
        for part in module.children():
            yield from _layers(part)
    elif isinstance(module, nn.MaxPool2d | nn.ReLU | nn.Identity) or (
        isinstance(module, nn.Conv2d) and set(module.dilation) == {1}
    ):
        yield module
    else:
        raise ValueError(
            f"tile= needs the receptive field of every layer of the backbone, but that of the "
            f"{type(module).__name__} that has been put into it is unknown; measure without tile="
        )


def _along_axis(value: Any) -> int:
    """Return a layer's padding, kernel size or stride along one axis."""
    return int(value[0] if isinstance(value, tuple) else value)


class TileSpan(NamedTuple):
    """A tile along one axis.

    Attributes:
        crop: the pixels that the tile needs.
        owned: for each layer, the positions that belong to the tile.
        within: the same positions, counted from the start of the crop.
    """

    crop: slice
    owned: list[slice]
    within: list[slice]


def tile_spans(length: int, tile: int, fields: Sequence[ReceptiveField]) -> list[TileSpan]:
    """Cut an axis of `length` pixels into tiles of equal size, at most `tile` rounded up to whole strides."""
    stride = max(field.stride for field in fields)
    before = max(field.before for field in fields)
    after = max(field.size - field.stride - field.before for field in fields)
    even = -(-length // -(-length // tile))
    step = -(-even // stride) * stride
    spans = []
    for start in range(0, length, step):
        end = start + step
        first = max(0, (start - before) // stride * stride)
        owned, within = (
            [
                slice((start - origin) // f.stride, (end - origin) // f.stride if end < length else None)
                for f in fields
            ]
            for origin in (0, first)
        )
        spans.append(TileSpan(slice(first, min(length, end + after)), owned, within))
    return spans


def _owned_maps(
    layer_maps: LayerMaps, row: TileSpan, column: TileSpan, crop0: Tensor, crop1: Tensor
) -> list[Tensor]:
    """Return the maps of one tile's crops, cut to the positions that belong to the tile."""
    return [
        each[..., down, across]
        for each, down, across in zip(layer_maps(crop0, crop1), row.within, column.within, strict=True)
    ]


class _InTiles(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layer_maps: LayerMaps,
        rows: Sequence[TileSpan],
        columns: Sequence[TileSpan],
        average: bool,
        in0: Tensor,
        in1: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.layer_maps, ctx.rows, ctx.columns, ctx.average = layer_maps, rows, columns, average
        ctx.save_for_backward(in0, in1, *parameters)
        device = in0.device.type
        # The backward pass runs outside of the caller's autocast and needs it again. Its cache would keep
        # weights that were cast without a graph.
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
                    pieces = _owned_maps(layer_maps, row, column, *crops)
                    if average:
                        sums = [
                            a + each.sum((2, 3), keepdim=True) for a, each in zip(sums, pieces, strict=True)
                        ]
                        counts = [n + each.shape[2:].numel() for n, each in zip(counts, pieces, strict=True)]
                    else:  # copies, because a view would keep the map of the whole crop
                        tiles.append([each.clone() for each in pieces])
                if not average:
                    bands.append([torch.cat(pieces, dim=3) for pieces in zip(*tiles, strict=True)])
        ctx.counts = counts
        if average:
            return tuple(total / count for total, count in zip(sums, counts, strict=True))
        return tuple(torch.cat(pieces, dim=2) for pieces in zip(*bands, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a gradient without a graph would count as a constant
            raise RuntimeError(
                "tiles have no second derivatives; measure without tile=, or without create_graph"
            )
        inputs = ctx.saved_tensors
        needed = [k for k in range(len(inputs)) if ctx.needs_input_grad[4 + k]]
        input_grads = {k: torch.zeros_like(inputs[k]) for k in needed}
        for row, column in itertools.product(ctx.rows, ctx.columns):
            area = (..., row.crop, column.crop)
            crops = [inputs[k].detach()[area].requires_grad_(k in input_grads) for k in (0, 1)]
            with torch.enable_grad(), ctx.autocast:
                maps = _owned_maps(ctx.layer_maps, row, column, *crops)
            if ctx.average:
                averages = zip(grads, ctx.counts, maps, strict=True)
                map_grads = [(grad / count).expand_as(each) for grad, count, each in averages]
            else:
                owned = zip(grads, row.owned, column.owned, strict=True)
                map_grads = [grad[..., down, across] for grad, down, across in owned]
            leaves = [*crops, *inputs[2:]]
            tile_grads = torch.autograd.grad(maps, [leaves[k] for k in needed], map_grads)
            for k, grad in zip(needed, tile_grads, strict=True):
                (input_grads[k][area] if k < 2 else input_grads[k]).add_(grad)
        return None, None, None, None, *(input_grads.get(k) for k in range(len(inputs)))
