"""The fast path: the layer maps of `rlpips.metric.formula` in less time and memory."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from rlpips.metric.formula import FeaturePairs
from rlpips.metric.fused import channel_lengths, fused_layer_map
from rlpips.metric.reference import Reference
from rlpips.system.autograd import eager


def can_run_fast(shape0: Sequence[int], shape1: Sequence[int]) -> bool:
    """Return whether `fast_layer_maps` may replace `formula.layer_maps` for features of these shapes.

    It may not if one image is compared with many, nor under `torch.compile`, tracing, export, `torch.func` or
    forward-mode differentiation: these need the operations of the formula.
    """
    return eager() and tuple(shape0) == tuple(shape1)  # in this order, because tracing records the comparison


def fast_layer_maps(
    features: FeaturePairs,
    weights: Sequence[Tensor | None],
    floors: Sequence[Tensor | None],
    lengths: Sequence[Sequence[Tensor] | None] = (None, None),
) -> list[Tensor]:
    """Return the map of distances of each layer, `(N, 1, h, w)`, as `formula.layer_maps` does, but faster.

    With the features of `features_in_one_run` it is faster for three reasons:

    - Both batches go through the backbone in one run, which reads its weights once. Each layer is compared as
      soon as it has run, so its features do not wait in memory for the other layers.
    - The steps of the formula are fused into one operation, which works block by block in the cache of a CPU.
      The formula moves several temporary tensors as large as the features through memory.
    - For the backward pass, the operation keeps only the features and their lengths, and computes the rest
      again.

    Args:
        features: for each layer the features of both batches of images, `(N, C, h, w)`, of one shape.
        weights: for each layer the weights of the head, `(C,)`; None for weights of 1.
        floors: the floor of each layer, a scalar, or None. Floors count as constants.
        lengths: for both batches the lengths of their features at each layer, `(N, 1, h, w)`, if known.
    """
    known0, known1 = ([None] * len(weights) if each is None else each for each in lengths)
    maps = []
    each_layer = zip(features, weights, floors, known0, known1, strict=True)
    for (f0, f1), weight, floor, length0, length1 in each_layer:
        if weight is None:
            weight = f0.new_ones(f0.shape[1], dtype=torch.promote_types(f0.dtype, torch.float32))
        length0 = channel_lengths(f0, floor) if length0 is None else length0
        length1 = channel_lengths(f1, floor) if length1 is None else length1
        maps.append(fused_layer_map(f0, length0, f1, length1, weight, floor))
    return maps


def features_in_one_run(
    run: Callable[[Tensor], Iterator[Tensor]], in0: Tensor | Reference, in1: Tensor | Reference
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the features of both batches for each layer. A layer runs when its features are asked for.

    Both batches go through the backbone in one run, unless only one of them needs a gradient; then they run
    apart, so that the graph does not hold the other. References do not run.

    Args:
        run: yields the features of each layer of images.
        in0: images `(N, 3, H, W)`, or a reference.
        in1: likewise.
    """
    if (
        isinstance(in0, Tensor)
        and isinstance(in1, Tensor)
        and in0.dtype == in1.dtype
        and (in0.requires_grad == in1.requires_grad or not torch.is_grad_enabled())
    ):
        sizes = [in0.shape[0], in1.shape[0]]
        for f in run(torch.cat([in0, in1])):
            f0, f1 = torch.split(f, sizes)
            yield f0, f1
        return
    features0, features1 = (
        each.features if isinstance(each, Reference) else run(each) for each in (in0, in1)
    )
    # torch.compile cannot trace `yield from zip`. The metric may compare fewer layers than the backbone has.
    for f0, f1 in zip(features0, features1, strict=False):
        yield f0, f1
