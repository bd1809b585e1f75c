"""All distances between two batches of embeddings, in blocks that fit into a memory budget.

A block is computed from lengths and products, `|a|^2 + |b|^2 - 2 ab`, in float64. For near-duplicates most of
this cancels. In float64 that costs nothing of the precision that float32 embeddings have.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from rlpips.pairwise.embeddings import Embeddings, slices

DEFAULT_MEMORY = 1 << 30  # bytes
_BLOCK_COLUMNS = 256  # enough that a product takes longer than the work around it
_FLOAT64_WIDTH = 512  # the fewest values of an embedding that are converted to float64 at once
_BYTES_PER_DISTANCE = 48  # of a block, with all intermediate results


def distance_blocks(a: Embeddings, b: Embeddings, memory: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield rows, columns and distances of blocks that cover all of `a` x `b`.

    If `a` is `b`, each pair comes once: the blocks cover what lies above the diagonal, and some of the rest.

    The embeddings of many images of one side are held, while those of the other side pass, a few at a time.
    Half the memory is for these embeddings. The other half is first for the backbone. Later a quarter is for
    a block of distances and a quarter for embeddings in float64.
    """
    # Images are held rather than ready embeddings, and else the smaller side. Then the other side, which may
    # run several times, costs least.
    held, passing = sorted((a, b), key=lambda side: (side.ready, len(side)))
    room = memory // 2 // max(1 if side.ready else side.bytes for side in (a, b))
    block_size = memory // 4 // _BYTES_PER_DISTANCE
    step = max(1, min(_BLOCK_COLUMNS, room // 4, math.isqrt(block_size)))
    count = max(1, min(room - step, block_size // step) // step) * step
    for rows in slices(0, len(held), count):
        left = held[rows]
        for columns in slices(rows.start if a is b else 0, len(passing), step):
            first, stop = columns.start - rows.start, columns.stop - rows.start
            if a is b:  # rows below the columns' last one would only repeat pairs
                right = left[first:stop] if columns.stop <= rows.stop else passing[columns]
                distances = _squared_distances(left[:stop], right, memory // 4)
                yield slice(rows.start, min(rows.stop, columns.stop)), columns, distances
                continue
            distances = _squared_distances(left, passing[columns], memory // 4)
            yield (rows, columns, distances) if held is a else (columns, rows, distances.T)
        del left  # before the next are made


def _squared_distances(a: Tensor, b: Tensor, memory: int) -> Tensor:
    """Return the squared distances `(n, m)` of rows `(n, D)` and `(m, D)`, summed in float64."""
    device = torch.device("cpu") if a.device.type == "mps" else a.device  # MPS has no float64
    same = a.is_set_to(b)  # then half the copies and lengths are enough
    product = torch.zeros(len(a), len(b), dtype=torch.float64, device=device)
    squares_a = product.new_zeros(len(a), 1)
    squares_b = squares_a.T if same else product.new_zeros(1, len(b))
    # Chunks wider than the upper bound do not fit into the processor's caches and are slower.
    width = min(max(memory // (8 * (len(a) + len(b))), _FLOAT64_WIDTH), 8 * _FLOAT64_WIDTH)
    for columns in slices(0, a.shape[1], width):
        x = a[:, columns].to(device).double()
        squares_a += torch.linalg.vector_norm(x, dim=1, keepdim=True).square_()
        y = x if same else b[:, columns].to(device).double()
        if not same:
            squares_b += torch.linalg.vector_norm(y, dim=1).square_()
        product.addmm_(x, y.T)
    product.mul_(-2).add_(squares_a).add_(squares_b)
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    product.masked_fill_(product < rounding_floor(dtype) * squares_a, 0)
    return product.to(a.device, dtype)


def rounding_floor(dtype: torch.dtype) -> float:
    """Return the squared distance, as a share of the squared length, below which all is rounding error.

    Two things round. The last digits of an image's activations, in `dtype`, depend on the batch in which the
    image runs. The sums of squares, in float64, depend on their order.
    """
    return max((16 * torch.finfo(dtype).eps) ** 2, 64 * torch.finfo(torch.float64).eps)
