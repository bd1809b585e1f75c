"""How far an attack moves images, in a perceptual metric, compared with visible changes.

An attack that nobody sees should move an image less than a distortion that everybody sees. So each metric
measures the distances between images and three kinds of changed versions: attacked ones (white-box if the
attack was on this metric, transferred if it was on another), ordinary distortions, and augmentations, which
keep the content. The main figure is the inflation: the median attacked distance divided by the median
distance of ordinary distortions. The results depend neither on the batches nor on the number of processes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlpips.attacks.base import Attack
from rlpips.attacks.metrics import Metric, distances, precompute
from rlpips.attacks.ssa import SSA
from rlpips.evaluation.crops import Crops, load_crops, to_batch
from rlpips.evaluation.image_changes import (
    STRENGTH,
    Change,
    attacking,
    byol_augmentations,
    distortions,
    views,
)
from rlpips.evaluation.pictures import Image, file_names, magnified_difference, save_side_by_side
from rlpips.evaluation.report_json import attack_settings
from rlpips.evaluation.result_cache import Measurements, ResultCache
from rlpips.evaluation.robustness_report import Distances, RobustnessReport
from rlpips.evaluation.worst_examples import WorstImages
from rlpips.hub.digests import metric_digest
from rlpips.images import to_tensor
from rlpips.system.processes import Processes


def robustness(
    metrics: Mapping[str, Metric],
    images: Sequence[Path],
    attacks: Mapping[str, Attack],
    *,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
    size: int = 64,
    limit: int | None = None,
    seed: int = 0,
    save_images: Path | None = None,
    cache: ResultCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RobustnessReport:
    """Attack each metric on images, and measure how far attacks, and visible changes, move the images.

    Args:
        metrics: the metrics by name, each on `device`. They take images `(N, 3, H, W)` in [-1, 1].
        images: image files. A square is cut from the middle of each. A file that is damaged, not an image or
            too small is skipped and named in the report.
        attacks: the attacks by name, on images in [-1, 1]; all but `SSA`, which needs triplets.
        batch_size: how many images run at once.
        device: where to compute.
        size: side of the squares, in pixels.
        limit: use only the first images, at most this many; by default all.
        seed: of augmentations and distortions.
        save_images: a folder for pictures of the worst examples, created if it is missing. Each PNG file
            shows the original, the attacked image and their magnified difference.
        cache: results of an interrupted call, and the place for new ones; by default nothing is kept.
        progress: called with the number of images done and their total, after each batch and attack.

    Returns:
        The distances, the same in every process of a group.

    Raises:
        ImageError: no image can be used.
        MissingExtraError: torchvision is not installed.
        OSError: the system cannot read an image, or cannot write to `save_images`; the error names the file.
        ValueError: no metric, no attack, an attack that does not fit, or crops too small for a metric.
    """
    _check_attacks(metrics, attacks)
    augmentations = byol_augmentations(size)
    crops = load_crops(images, size, limit)
    digests = {name: metric_digest(metric) for name, metric in metrics.items()}
    settings = {name: attack_settings(attack) for name, attack in attacks.items()}
    pairs = [(source, attack) for source in metrics for attack in attacks]
    cache = ResultCache() if cache is None else cache
    run = {"metrics": digests, "images": crops.checksum(), "size": size}
    measurer = _Measurer(metrics, crops, batch_size, torch.device(device), len(pairs) + 1, progress)

    augmented, distorted = views(augmentations, crops.pixels, seed), distortions(crops.pixels, seed)
    ordinary = {**augmented, **distorted}
    key = {**run, "seed": seed, "changes": list(ordinary), "strength": STRENGTH}
    columns = cache.get(key, partial(measurer.measure, ordinary)).columns
    measurer.end_round()

    attacked, worst = {}, {}
    for source, attack in pairs:
        change = {"attacked": attacking(attacks[attack], metrics[source])}
        key = {**run, "source": source, "attack": settings[attack]}
        found = cache.get(key, partial(measurer.measure, change, source))
        measurer.end_round()
        attacked[source, attack] = {metric: found.columns[f"attacked {metric}"] for metric in metrics}
        worst[source, attack] = found.images

    if save_images is not None and Processes.current().rank == 0:
        _save_worst(save_images, worst, crops)
    return RobustnessReport(
        images=crops.names,
        skipped=crops.skipped,
        size=size,
        seed=seed,
        metrics=digests,
        attacks=settings,
        attacked=attacked,
        augmented={m: np.concatenate([columns[f"{view} {m}"] for view in augmented]) for m in metrics},
        distorted={m: {name: columns[f"{name} {m}"] for name in distorted} for m in metrics},
        worst={
            (source, attack): [(crops.names[i], float(attacked[source, attack][source][i])) for i in found]
            for (source, attack), found in worst.items()
        },
        undefined={
            metric: problem
            for metric in metrics
            if (problem := _first_nan(metric, list(ordinary), columns, attacked, crops.names)) is not None
        },
    )


def _check_attacks(metrics: Mapping[str, Metric], attacks: Mapping[str, Attack]) -> None:
    if not metrics or not attacks:
        raise ValueError("pass at least one metric and at least one attack")
    for name, each in attacks.items():
        if isinstance(each, SSA):
            raise ValueError(f"the attack {name!r} needs triplets; self-distances have none")  # noqa: TRY004
        if tuple(each.bounds) != (-1.0, 1.0):
            raise ValueError(f"the attack {name!r} must have bounds (-1, 1), got {each.bounds}")


def _first_nan(
    metric: str,
    changes: Sequence[str],
    columns: Mapping[str, Distances],
    attacked: Mapping[tuple[str, str], Mapping[str, Distances]],
    names: Sequence[str],
) -> str | None:
    """Say for which image, and which change of it, the metric first gave NaN, if it did."""
    cases = {change: columns[f"{change} {metric}"] for change in changes}
    for (source, attack), by_metric in attacked.items():
        not_made = np.isnan(by_metric[source]) & (source != metric)  # another metric gave NaN, not this one
        cases[f"{attack} on {source}"] = np.where(not_made, 0, by_metric[metric])
    for case, values in cases.items():
        if np.isnan(values).any():
            return f"{metric} gives NaN for {names[int(np.isnan(values).argmax())]} ({case})"
    return None


class _Measurer:
    """Measures changes to all images, under all metrics, batch by batch, and reports progress.

    A round is one call of `measure`, or of another process or an earlier run in its place.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric],
        crops: Crops,
        batch_size: int,
        device: torch.device,
        rounds: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._metrics = metrics
        self._pixels = crops.pixels
        self._batch_size = batch_size
        self._device = device
        self._rounds = rounds
        self._progress = progress
        self._round = 0
        self._reported = 0

    def measure(self, changes: Mapping[str, Change], source: str | None = None) -> Measurements:
        """Measure distances `(N,)` into columns 'CHANGE METRIC'.

        With a `source`, also keep the changed images that moved farthest by that metric.
        """
        processes, worst = Processes.current(), WorstImages()
        own: dict[int, dict[str, Distances]] = {}
        for number, image_ids in processes.batches(len(self._pixels), self._batch_size):
            x = to_batch([self._pixels[i] for i in image_ids], self._device)
            with torch.no_grad():
                originals = {name: precompute(metric, x) for name, metric in self._metrics.items()}
            own[number] = {}
            for change, make in changes.items():
                changed = make(x, image_ids)
                for name, metric in self._metrics.items():
                    own[number][f"{change} {name}"] = _distances(metric, changed, originals[name])
                if source is not None:
                    worst.add(image_ids, own[number][f"{change} {source}"], changed)
            self._report(image_ids.stop)
        batches = processes.gather(own)
        columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        return Measurements(columns, worst.images())

    def end_round(self) -> None:
        """Report the round as done, whoever measured it, and begin the next."""
        self._report(len(self._pixels))
        self._round += 1

    def _report(self, images: int) -> None:
        done = self._round * len(self._pixels) + images
        if self._progress is not None and done != self._reported:
            self._progress(done, self._rounds * len(self._pixels))
        self._reported = done


def _distances(metric: Metric, changed: Tensor, original: Any) -> Distances:
    with torch.no_grad():
        found = distances(metric, changed, original)
        not_made = changed.flatten(1).isnan().any(dim=1)  # a metric may give a number even for these
        return found.masked_fill(not_made, math.nan).cpu().double().numpy()


def _save_worst(folder: Path, worst: Mapping[tuple[str, str], Mapping[int, Image]], crops: Crops) -> None:
    """Write each example as `FOLDER/SOURCE/ATTACK/RANK-NAME.png`: original, attacked image, difference."""
    sources = file_names([source for source, _ in worst])
    attacks = file_names([attack for _, attack in worst])
    for (source, attack), examples in worst.items():
        place = folder / sources[source] / attacks[attack]
        for rank, (i, attacked) in enumerate(examples.items(), 1):
            original = to_tensor(crops.pixels[i])[0][0].numpy()
            path = place / f"{rank}-{Path(crops.names[i]).stem}.png"
            save_side_by_side(path, [original, attacked, magnified_difference(original, attacked)])
