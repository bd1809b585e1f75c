"""Small things to attack: a plain metric, triplets, linear objectives, and a budget."""

import torch
from peers import images

from rlpips.attacks.objectives import Objective

EPS = 4 / 255


def plain(x, y):
    """A metric of somebody else: a function of two batches, `(N,)`, with nothing else to it."""
    return (x - y).diff(dim=-1).abs().mean(dim=(1, 2, 3)) + (x - y).square().mean(dim=(1, 2, 3))


def triplets(n=6, seed=0, size=32, dtype=torch.float32):
    """Return references, two noisy versions of which the first is closer in every other triplet, and judgements."""
    ref = 0.8 * images(n, 3, size, size, seed=seed, dtype=dtype).clamp(-1, 1)
    noise = images(2 * n, 3, size, size, seed=seed + 1, dtype=dtype)
    judge = torch.arange(n, dtype=dtype) % 2
    near, far = 0.10, 0.13
    s0 = torch.where(judge < 0.5, near, far).view(-1, 1, 1, 1).to(dtype)
    x0, x1 = ref + s0 * noise[:n], ref + (near + far - s0) * noise[n:]
    return ref, x0.clamp(-1, 1), x1.clamp(-1, 1), judge


def lengths(delta):
    return delta.square().sum(dim=(-3, -2, -1)).sqrt()


class Slopes(Objective):
    """Is linear in the images, with other slopes at each look; keeps what it has seen."""

    def __init__(self, slopes):
        self.slopes, self.seen = slopes, []

    def __call__(self, x, index):
        self.seen.append(x.detach().clone())
        return (self.slopes[len(self.seen) - 1] * x).flatten(1).sum(dim=1)


def slopes(count, shape, seed=0):
    """Draw slopes that lead to and fro, and vary in size."""
    generator = torch.Generator().manual_seed(seed)
    return 10.0 ** torch.randn(count, 1, 1, 1, 1, generator=generator, dtype=torch.float64) * torch.randn(
        count, *shape, generator=generator, dtype=torch.float64
    )
