"""The functions of `lpips` that score any distance function on the batches of any loader."""

from collections.abc import Callable, Iterator, Mapping
from operator import length_hint
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlpips.attacks.metrics import Metric, metric_name
from rlpips.errors import UndefinedDistanceError
from rlpips.evaluation.scores import Array, jnd_score, two_afc_score
from rlpips.system.progress import progress


def _loaded(data_loader: Any, name: str) -> Iterator[Mapping[str, Tensor]]:
    """Yield the batches of a loader, or of its `load_data()` if it has that method, with a progress bar."""
    load = getattr(data_loader, "load_data", None)
    batches = data_loader if load is None else load()
    with progress(name, total=length_hint(batches) or None, unit="batch") as bar:
        for batch in batches:
            yield batch
            bar.update()


def _flat(values: Any) -> Array:
    return torch.as_tensor(values).detach().cpu().double().flatten().numpy()


def _check_defined(func: Metric, distances: Array) -> None:
    undefined = np.isnan(distances)
    if undefined.any():
        row = int(undefined.argmax())
        raise UndefinedDistanceError(f"{metric_name(func)} gives NaN for example {row} of the loader", row)


def score_2afc_dataset(
    data_loader: Any, func: Callable[[Tensor, Tensor], Any], name: str = ""
) -> tuple[float, dict[str, Array]]:
    """Score a distance function by 2AFC: how often it agrees with people about the nearer of two images.

    Args:
        data_loader: yields batches with `ref`, `p0`, `p1` and `judge`; or its `load_data()` does.
        func: maps two batches of images to N distances.
        name: title of the progress bar.

    Returns:
        The score in [0, 1], and a dictionary of `d0s`, `d1s`, `gts` (judgements) and `scores`, each `(N,)`.

    Raises:
        UndefinedDistanceError: a distance is NaN. The error has the number of the example.
    """
    rows = [
        (_flat(func(data["ref"], data["p0"])), _flat(func(data["ref"], data["p1"])), _flat(data["judge"]))
        for data in _loaded(data_loader, name)
    ]
    d0s, d1s, gts = (np.concatenate(column) for column in zip(*rows, strict=True))
    _check_defined(func, d0s + d1s)
    scores = two_afc_score(d0s, d1s, gts)
    return float(np.mean(scores)), {"d0s": d0s, "d1s": d1s, "gts": gts, "scores": scores}


def score_jnd_dataset(
    data_loader: Any, func: Callable[[Tensor, Tensor], Any], name: str = ""
) -> tuple[float, dict[str, Array]]:
    """Score a distance function by JND: how well it separates pairs that people found to be the same.

    Args:
        data_loader: yields batches with `p0`, `p1` and `same`; or its `load_data()` does.
        func: maps two batches of images to N distances.
        name: title of the progress bar.

    Returns:
        The score, a mean average precision in [0, 1], and a dictionary of `ds` and `sames`, each `(N,)`.

    Raises:
        UndefinedDistanceError: a distance is NaN. The error has the number of the example.
    """
    rows = [(_flat(func(data["p0"], data["p1"])), _flat(data["same"])) for data in _loaded(data_loader, name)]
    ds, sames = (np.concatenate(column) for column in zip(*rows, strict=True))
    _check_defined(func, ds)
    return jnd_score(ds, sames), {"ds": ds, "sames": sames}
