"""Random numbers for attacks: each image has a stream of its own."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class RandomStreams:
    """One random generator per image, so that results do not depend on how images are batched.

    The generators are on the CPU, so that all devices draw the same numbers.

    Args:
        seed: the attack's seed.
        image_ids: one number per image. The same seed and number give the same stream.
    """

    def __init__(self, seed: int, image_ids: Sequence[int]) -> None:
        # torch's CPU generator uses only 32 bits of its seed, so both numbers are mixed into 32 bits.
        states = (np.random.SeedSequence((seed, image_id)).generate_state(1) for image_id in image_ids)
        self._generators = [torch.Generator().manual_seed(int(state[0])) for state in states]

    def uniform(self, like: Tensor, index: Tensor) -> Tensor:
        """Draw from [0, 1) in the shape of `like`. Its row k belongs to image `index[k]` of the batch."""
        return self._draw("uniform_", like, index)

    def normal(self, like: Tensor, index: Tensor) -> Tensor:
        """Draw from the standard normal distribution in the shape of `like`, likewise row by row."""
        return self._draw("normal_", like, index)

    def _draw(self, distribution: str, like: Tensor, index: Tensor) -> Tensor:
        out = torch.empty(like.shape, dtype=torch.float32)
        for row, image in zip(out, index.tolist(), strict=True):
            getattr(row, distribution)(generator=self._generators[image])
        return out.to(like)
