"""How far an attacker can push images from themselves, against what visible changes do to the same distances.

An attack that nobody sees should move an image less, in a perceptual metric, than a distortion that everybody
sees. So each metric's distances between images and their attacked versions, white-box where the attack was on
this metric and transferred where it was on another, stand beside distances to ordinary distortions and to
augmentations that leave the content alone. The figure of merit is the inflation: the median attacked distance
over the median distance of ordinary distortions. All that is random is drawn for each image apart, by its
position, so results do not depend on how images are put into batches, nor on the number of processes.
"""

import dataclasses
import hashlib
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlpips.attacks.base import Attack
from rlpips.attacks.metrics import Metric, distances, precompute
from rlpips.attacks.objectives import Inflate
from rlpips.attacks.ssa import SSA
from rlpips.data.distortions import DISTORTIONS
from rlpips.errors import ImageError, MissingExtraError, UndefinedDistanceError
from rlpips.evaluation.report_json import report_header
from rlpips.evaluation.result_cache import Measurements, ResultCache
from rlpips.evaluation.worst_examples import Worst, difference, file_names, save_side_by_side
from rlpips.hub.checkpoints import metric_digest
from rlpips.images import read_image, to_tensor
from rlpips.system.processes import Processes

Bytes = npt.NDArray[np.uint8]
Distances = npt.NDArray[np.float64]

STRENGTH = 0.5  # of ordinary distortions: visible at a glance, the content untouched


@dataclass(frozen=True)
class RobustnessReport:
    """Distances of images to changed versions of themselves, under each of some metrics.

    Attributes:
        images: the N images' names.
        skipped: for each file that was left out, why.
        size: side of the square crops, in pixels.
        seed: of augmentations and distortions; each attack has its own.
        metrics: for each metric its digest, `rlpips.checkpoints.metric_digest`.
        attacks: for each attack its class and settings.
        attacked: `attacked[source, attack][metric]` are distances `(N,)`, by `metric`, of images to versions
            that the attack made against `source`.
        augmented: for each metric `(2 * N,)`, a view of each image by the first of BYOL's two sets of
            augmentations, then one by the second.
        distorted: `distorted[metric][distortion]` are distances `(N,)`.
        worst: for each source and attack the images that were pushed farthest, with distances by the source.
        undefined: for each metric that gave NaN, for which image first; such distances are NaN here, and so
            are all to an attacked version that was not found because of it.
    """

    images: list[str]
    skipped: dict[str, str]
    size: int
    seed: int
    metrics: dict[str, str | None]
    attacks: dict[str, dict[str, Any]]
    attacked: dict[tuple[str, str], dict[str, Distances]]
    augmented: dict[str, Distances]
    distorted: dict[str, dict[str, Distances]]
    worst: dict[tuple[str, str], list[tuple[str, float]]]
    undefined: dict[str, str] = field(default_factory=dict)

    def ordinary(self, metric: str) -> Distances:
        """Return the distances of all ordinary distortions together."""
        return np.concatenate(list(self.distorted[metric].values()))

    def inflation(self, metric: str, attack: str, source: str | None = None) -> float:
        """Return the median attacked distance over the median distance of ordinary distortions.

        Args:
            metric: what measures both.
            attack: an attack's name.
            source: the metric that was attacked, by default the same one.
        """
        attacked = float(np.median(self.attacked[source or metric, attack][metric]))
        ordinary = float(np.median(self.ordinary(metric)))
        return math.inf if ordinary == 0 else attacked / ordinary

    def to_json(self) -> dict[str, Any]:
        """Return everything as lists, dicts and numbers, for `json.dumps`; what is not finite is None."""
        settings = {"size": self.size, "strength": STRENGTH, "attacks": self.attacks}
        return {
            **report_header(self.seed, self.metrics, settings),
            "images": self.images,
            "skipped": self.skipped,
            "undefined": self.undefined,
            "metrics": {
                metric: {
                    "ordinary_median": _number(np.median(self.ordinary(metric))),
                    "augmented_median": _number(np.median(self.augmented[metric])),
                    "augmented": _numbers(self.augmented[metric]),
                    "distorted": {name: _numbers(found) for name, found in self.distorted[metric].items()},
                }
                for metric in self.metrics
            },
            "attacked": [
                {
                    "source": source,
                    "attack": attack,
                    "metric": metric,
                    "median": _number(np.median(found)),
                    "inflation": _number(self.inflation(metric, attack, source)),
                    "distances": _numbers(found),
                }
                for (source, attack), by_metric in self.attacked.items()
                for metric, found in by_metric.items()
            ],
            "worst": [
                {
                    "source": source,
                    "attack": attack,
                    "examples": [{"image": name, "distance": _number(value)} for name, value in examples],
                }
                for (source, attack), examples in self.worst.items()
            ],
        }


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _numbers(values: Distances) -> list[float | None]:
    return [_number(value) for value in values]


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
    """Attack each metric on images, and measure what the attacks, and visible changes, do to distances.

    Args:
        metrics: the metrics by name, each on `device`, of images `(N, 3, H, W)` in [-1, 1].
        images: image files. A square is cut from the middle of each; a file that is damaged, no image or too
            small is skipped and named in the report.
        attacks: the attacks by name, on images in [-1, 1]; any but `SSA`, which needs triplets.
        batch_size: the most images that run at once.
        device: where to compute.
        size: side of the squares, in pixels.
        limit: the most images to take, the first ones; by default all.
        seed: of augmentations and distortions.
        save_images: a folder for the worst examples, made if there is none: PNG files of the original, the
            attacked image and their difference, magnified until it fills the range, side by side.
        cache: what an interrupted call has measured already, and where to keep more; by default nothing is.
        progress: called with the number of images done and of all, once for each batch and attack.

    Returns:
        The distances, the same in every process of a group.

    Raises:
        ImageError: no image is left.
        MissingExtraError: torchvision is not installed.
        OSError: an image cannot be read now, or `save_images` cannot be written; the error names the file.
        ValueError: no metric, no attack, an attack that does not fit, or crops too small for a metric.
    """
    if not metrics or not attacks:
        raise ValueError("pass at least one metric and at least one attack")
    for name, each in attacks.items():
        if isinstance(each, SSA):
            raise ValueError(f"the attack {name!r} needs triplets; self-distances have none")  # noqa: TRY004
        if tuple(each.bounds) != (-1.0, 1.0):
            raise ValueError(f"the attack {name!r} must have bounds (-1, 1), got {each.bounds}")
    augmentations = _byol(size)
    names, crops, skipped = _load(images, size, limit)
    digests = {name: metric_digest(metric) for name, metric in metrics.items()}
    settings = {name: _settings(attack) for name, attack in attacks.items()}
    pairs = [(source, attack) for source in metrics for attack in attacks]
    cache = ResultCache() if cache is None else cache
    run = {"metrics": digests, "images": _checksum(crops), "size": size}
    measuring = _Measuring(metrics, crops, batch_size, torch.device(device), len(pairs) + 1, progress)

    ordinary: dict[str, _Change] = {}
    for k, augment in enumerate(augmentations):
        ordinary[f"view {k}"] = partial(_augment, augment, k, crops, seed)
    for distortion in DISTORTIONS:
        ordinary[distortion] = partial(_distort, distortion, crops, seed)
    key = {**run, "seed": seed, "changes": list(ordinary), "strength": STRENGTH}
    beside = cache.get(key, lambda: measuring(ordinary)).columns
    measuring.next()
    attacked, worst = {}, {}
    for source, attack in pairs:
        change = {"attacked": partial(_attack, attacks[attack], metrics[source])}
        key = {**run, "source": source, "attack": settings[attack]}
        found = cache.get(key, partial(measuring, change, source))
        measuring.next()
        attacked[source, attack] = {metric: found.columns[f"attacked {metric}"] for metric in metrics}
        worst[source, attack] = found.images
    undefined = _undefined(list(ordinary), beside, attacked, metrics, names)
    if save_images is not None and Processes.current().rank == 0:
        _save(save_images, worst, names, crops)
    return RobustnessReport(
        images=names,
        skipped=skipped,
        size=size,
        seed=seed,
        metrics=digests,
        attacks=settings,
        attacked=attacked,
        augmented={
            m: np.concatenate([beside[f"view {k} {m}"] for k in range(len(augmentations))]) for m in metrics
        },
        distorted={m: {d: beside[f"{d} {m}"] for d in DISTORTIONS} for m in metrics},
        worst={
            (source, attack): [(names[i], float(attacked[source, attack][source][i])) for i in found]
            for (source, attack), found in worst.items()
        },
        undefined=undefined,
    )


def _undefined(
    changes: Sequence[str],
    beside: Mapping[str, Distances],
    attacked: Mapping[tuple[str, str], Mapping[str, Distances]],
    metrics: Mapping[str, Metric],
    names: Sequence[str],
) -> dict[str, str]:
    """Say of each metric that gave NaN for which image it first did."""
    found: dict[str, str] = {}
    for metric in metrics:
        cases = {change: beside[f"{change} {metric}"] for change in changes}
        for (source, attack), by_metric in attacked.items():
            unfair = np.isnan(by_metric[source]) & (source != metric)  # there was no image to measure
            cases[f"{attack} on {source}"] = np.where(unfair, 0, by_metric[metric])
        for case, values in cases.items():
            if np.isnan(values).any():
                image = names[int(np.isnan(values).argmax())]
                found.setdefault(metric, f"{metric} gives NaN for {image} ({case})")
    return found


# Makes changed versions of a batch of images `(N, 3, H, W)` in [-1, 1] with these positions.
_Change = Callable[[Tensor, range], Tensor]


class _Measuring:
    """Measures changes to all images, under all metrics, batch by batch, and tells of its progress."""

    def __init__(
        self,
        metrics: Mapping[str, Metric],
        crops: Sequence[Bytes],
        batch_size: int,
        device: torch.device,
        rounds: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._metrics = metrics
        self._crops = crops
        self._batch_size = batch_size
        self._device = device
        self._rounds = rounds
        self._progress = progress
        self._round = 0
        self._told = 0

    def _tell(self, images: int) -> None:
        done = self._round * len(self._crops) + images
        if self._progress is not None and done != self._told:
            self._progress(done, self._rounds * len(self._crops))
        self._told = done

    def next(self) -> None:
        """Begin the next round; this one is done, by other processes or by an earlier run."""
        self._tell(len(self._crops))
        self._round += 1

    def __call__(self, changes: Mapping[str, _Change], source: str | None = None) -> Measurements:
        """Measure distances `(N,)` into columns 'CHANGE METRIC', and keep what `source` finds worst."""
        processes, worst = Processes.current(), Worst()
        own: dict[int, dict[str, Distances]] = {}
        for number, rows in processes.batches(len(self._crops), self._batch_size):
            x = _batch([self._crops[i] for i in rows], self._device)
            with torch.no_grad():
                anchors = {name: precompute(metric, x) for name, metric in self._metrics.items()}
            own[number] = {}
            for change, make in changes.items():
                images = make(x, rows)
                for name, metric in self._metrics.items():
                    own[number][f"{change} {name}"] = _distances(metric, images, anchors[name])
                if source is not None:
                    worst.add(rows, own[number][f"{change} {source}"], images)
            self._tell(rows.stop)
        batches = processes.gather(own)
        columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        return Measurements(columns, worst.images(processes))


def _load(
    images: Sequence[Path], size: int, limit: int | None
) -> tuple[list[str], list[Bytes], dict[str, str]]:
    """Cut squares from the middle of images; return names, squares, and for what was skipped the reason."""
    names: list[str] = []
    crops: list[Bytes] = []
    skipped: dict[str, str] = {}
    for path in images:
        if len(crops) == limit:
            break
        try:
            image = read_image(path)
        except ImageError as error:  # an error of reading may pass, and the sample would be another
            skipped[str(path)] = str(error)
            continue
        height, width = image.shape[:2]
        if min(height, width) < size:
            skipped[str(path)] = (
                f"{height} x {width} pixels are too few for a crop of {size} x {size} (height x width)"
            )
            continue
        top, left = (height - size) // 2, (width - size) // 2
        names.append(path.name)
        crops.append(image[top : top + size, left : left + size].copy())
    if not crops:
        reason = "".join(f"; {path}: {why}" for path, why in list(skipped.items())[:1])
        raise ImageError(f"there is no image to measure{reason}")
    return names, crops, skipped


def _batch(images: Sequence[Bytes], device: torch.device) -> Tensor:
    """Bring arrays `(H, W, 3)` to a batch `(N, 3, H, W)` in [-1, 1]."""
    return to_tensor(np.stack(images))[0].to(device)


def _distances(metric: Metric, images: Tensor, anchor: Any) -> Distances:
    with torch.no_grad():
        found = distances(metric, images, anchor)
        nowhere = images.flatten(1).isnan().any(dim=1)  # whatever a metric says of images that are NaN
        return found.masked_fill(nowhere, math.nan).cpu().double().numpy()


def _attack(attack: Attack, metric: Metric, x: Tensor, numbers: range) -> Tensor:
    """Attack images together; if one has no distance, each alone, and return NaN for those that have none."""
    try:
        return attack(Inflate(metric, x), x, numbers)
    except UndefinedDistanceError:
        if len(x) == 1:
            return torch.full_like(x, math.nan)
        alone = [_attack(attack, metric, x[i : i + 1], numbers[i : i + 1]) for i in range(len(x))]
        return torch.cat(alone)


def _distort(distortion: str, crops: Sequence[Bytes], seed: int, x: Tensor, numbers: range) -> Tensor:
    # The name's checksum, not its place in the table, so that a new distortion changes no other's numbers.
    check = zlib.crc32(distortion.encode())
    rngs = (np.random.default_rng((seed, number, check)) for number in numbers)
    distort = DISTORTIONS[distortion]
    versions = [distort(crops[i], STRENGTH, rng) for i, rng in zip(numbers, rngs, strict=True)]
    return _batch(versions, x.device)


def _byol(size: int) -> list[Callable[[Tensor], Tensor]]:
    """Make both sets of augmentations of BYOL (Grill et al. 2020, arXiv 2006.07733, table 6)."""
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise MissingExtraError("measuring augmentations", "evaluation") from error
    # The paper blurs with 23 of 224 pixels; the kernel shrinks with the image, but not below its sigma.
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


def _augment(
    augment: Callable[[Tensor], Tensor], k: int, crops: Sequence[Bytes], seed: int, x: Tensor, numbers: range
) -> Tensor:
    views = []
    for number in numbers:
        state = np.random.SeedSequence((seed, number, k)).generate_state(1)
        # torchvision draws from the global generator alone, and that of the CPU for images there
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(state[0]))
            view = augment(torch.from_numpy(crops[number]).movedim(2, 0).contiguous())
        views.append(view.movedim(0, 2).numpy())
    return _batch(views, x.device)


def _save(
    folder: Path,
    worst: Mapping[tuple[str, str], Mapping[int, npt.NDArray[np.float32]]],
    names: Sequence[str],
    crops: Sequence[Bytes],
) -> None:
    """Write each example as `FOLDER/SOURCE/ATTACK/RANK-NAME.png`: original, attacked image, difference."""
    sources = file_names([source for source, _ in worst])
    attacks = file_names([attack for _, attack in worst])
    for (source, attack), examples in worst.items():
        place = folder / sources[source] / attacks[attack]
        for rank, (number, attacked) in enumerate(examples.items(), 1):
            original = to_tensor(crops[number])[0][0].numpy()
            path = place / f"{rank}-{Path(names[number]).stem}.png"
            save_side_by_side(path, [original, attacked, difference(original, attacked)])


def _checksum(crops: Sequence[Bytes]) -> str:
    digest = hashlib.sha256()
    for crop in crops:
        digest.update(crop.data)
    return digest.hexdigest()


def _settings(attack: Attack) -> dict[str, Any]:
    settings = dataclasses.asdict(attack) if dataclasses.is_dataclass(attack) else vars(attack)
    return {"kind": type(attack).__name__, **settings}
