"""A random map that shortens embeddings."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Projection:
    """A random linear map of embeddings to `dim` values, which keeps squared distances up to noise.

    The squared distances of projected embeddings are those of the embeddings on average over seeds. Their
    standard deviation is at most `sqrt(2 / dim)` of the distance: 4.4 % with 1024 values. The map shuffles
    the values of an embedding, gives them random signs, and adds them up in `dim` groups of equal size. This
    is a count sketch (Charikar et al. 2002, "Finding frequent items in data streams") with balanced groups.
    It takes about as long as reading the embedding.

    The map depends only on `dim`, `seed` and the width of the embeddings.

    Args:
        dim: how many values remain.
        seed: another seed gives another map. Only embeddings of the same map can be compared.

    Raises:
        ValueError: `dim` is less than 1.

    >>> Projection(16)(torch.ones(2, 1000)).shape
    torch.Size([2, 16])
    """

    dim: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim={self.dim} must be at least 1")

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Map `(N, D)`, floating point, to `(N, dim)` of the same dtype and device."""
        order, signs = (each.to(embeddings.device) for each in _draw(embeddings.shape[1], self))
        signed = embeddings[:, order] * signs.to(embeddings.dtype)
        return signed.view(len(signed), -1, self.dim).sum(dim=1)


@functools.lru_cache(maxsize=4)
def _draw(width: int, projection: Projection) -> tuple[Tensor, Tensor]:
    """Return the order of the values and their signs. Values of sign 0 fill the last group."""
    generator = torch.Generator().manual_seed(projection.seed)
    count = -(-width // projection.dim) * projection.dim
    order = torch.randperm(count, generator=generator)
    signs = torch.randint(2, (count,), generator=generator, dtype=torch.int8) * 2 - 1
    signs[order >= width] = 0
    return order.clamp(max=width - 1), signs
