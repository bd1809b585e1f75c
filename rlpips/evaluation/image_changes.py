"""The changes to images that a robustness report measures: distortions, augmentations and attacks.

Each image has random draws of its own, which follow from the seed and the image's id. So a change does not
depend on the batch that the image is in.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rlpips.attacks.base import Attack
from rlpips.attacks.metrics import Metric
from rlpips.attacks.objectives import Inflate
from rlpips.data.distortions import DISTORTIONS
from rlpips.errors import MissingExtraError, UndefinedDistanceError
from rlpips.evaluation.crops import Pixels, to_batch

STRENGTH = 0.5  # of distortions: visible at a glance, while the content stays

Change = Callable[[Tensor, range], Tensor]
"""Takes a batch `(N, 3, H, W)` in [-1, 1] and its image ids, and returns changed images."""

Augmentation = Callable[[Tensor], Tensor]
"""Takes and returns an image `(3, H, W)`, uint8."""


def distortions(crops: Sequence[Pixels], seed: int) -> dict[str, Change]:
    """Return every distortion of `rlpips.data.DISTORTIONS`, at `STRENGTH`, by name."""
    return {name: partial(_distort, name, crops, seed) for name in DISTORTIONS}


def _distort(name: str, crops: Sequence[Pixels], seed: int, x: Tensor, image_ids: range) -> Tensor:
    # The seed takes the name's checksum, not its place in the table: a new distortion changes no others.
    checksum = zlib.crc32(name.encode())
    distort = DISTORTIONS[name]
    rngs = (np.random.default_rng((seed, i, checksum)) for i in image_ids)
    distorted = [distort(crops[i], STRENGTH, rng) for i, rng in zip(image_ids, rngs, strict=True)]
    return to_batch(distorted, x.device)


def byol_augmentations(size: int) -> list[Augmentation]:
    """Return the two sets of augmentations of BYOL (Grill et al. 2020, arXiv 2006.07733, table 6).

    Raises:
        MissingExtraError: torchvision is not installed.
    """
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise MissingExtraError("measuring augmentations", "evaluation") from error
    # The paper blurs with a kernel of 23 pixels in 224. It shrinks with the image, but must hold the sigma.
    kernel = max(7, size // 20 * 2 + 1)
    return [
        v2.Compose(
            [
                v2.RandomResizedCrop(
                    size, scale=(0.08, 1), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
                ),
                v2.RandomHorizontalFlip(0.5),
                v2.RandomApply(
                    [v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)], p=0.8
                ),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1, 2.0))], p=blur),
                v2.RandomSolarize(128, p=solarize),
            ]
        )
        for blur, solarize in ((1.0, 0.0), (0.1, 0.2))
    ]


def views(augmentations: Sequence[Augmentation], crops: Sequence[Pixels], seed: int) -> dict[str, Change]:
    """Return a change 'view K' for each augmentation."""
    return {f"view {k}": partial(_augment, each, k, crops, seed) for k, each in enumerate(augmentations)}


def _augment(
    augment: Augmentation, k: int, crops: Sequence[Pixels], seed: int, x: Tensor, image_ids: range
) -> Tensor:
    augmented = []
    for i in image_ids:
        state = np.random.SeedSequence((seed, i, k)).generate_state(1)
        # torchvision draws only from the global generator of the CPU, for images there.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(state[0]))
            view = augment(torch.from_numpy(crops[i]).movedim(2, 0).contiguous())
        augmented.append(view.movedim(0, 2).numpy())
    return to_batch(augmented, x.device)


def attacking(attack: Attack, metric: Metric) -> Change:
    """Return the change that an attack on the metric makes.

    An image for which the metric gives NaN becomes NaN.
    """
    return partial(_attack, attack, metric)


def _attack(attack: Attack, metric: Metric, x: Tensor, image_ids: range) -> Tensor:
    try:
        return attack(Inflate(metric, x), x, image_ids)
    except UndefinedDistanceError:
        if len(x) == 1:
            return torch.full_like(x, math.nan)
        # The others can still be attacked, each alone.
        alone = [_attack(attack, metric, x[i : i + 1], image_ids[i : i + 1]) for i in range(len(x))]
        return torch.cat(alone)
