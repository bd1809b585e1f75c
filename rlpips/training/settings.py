"""What a run needs beside its recipe and its data."""

from dataclasses import dataclass

import torch


@dataclass
class Settings:
    """How and where a run is computed. A run that is resumed may have other settings.

    Attributes:
        device: where to train.
        workers: processes that read data.
        parts: compute each step in this many parts, to save memory (gradient accumulation).
        validation_steps: gradient steps of the attack that validates. It is the attack of the recipe (PGD for
            'ssa'). 0 validates without an attack.
        validation_limit: the most triplets that validate, evenly spaced over the data.
        tensorboard: also write a log for TensorBoard.
    """

    device: str | torch.device = "cpu"
    workers: int = 0
    parts: int = 1
    validation_steps: int = 10
    validation_limit: int | None = None
    tensorboard: bool = False
