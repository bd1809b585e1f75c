"""How far an attacker can push images from themselves, against what visible changes do to the same distances.

An attack that nobody sees should move an image less, in a perceptual metric, than a distortion that everybody
sees. So each metric's distances between images and their attacked versions, white-box where the attack was on
this metric and transferred where it was on another, stand beside distances to ordinary distortions and to
augmentations that leave the content alone. The figure of merit is the inflation: the median attacked distance
over the median distance of ordinary distortions. All that is random is drawn for each image apart, by its
position, so results do not depend on how images are put into batches.
"""

import dataclasses
import io
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

import rlpips
from rlpips.attacks import SSA, Attack
from rlpips.checkpoints import tensors_digest
from rlpips.distortions import DISTORTIONS
from rlpips.errors import ImageError, MissingExtraError
from rlpips.files import write_atomically
from rlpips.images import load_image, to_tensor
from rlpips.objectives import Inflate, Metric, activated, distances

Bytes = npt.NDArray[np.uint8]
Distances = npt.NDArray[np.float64]

STRENGTH = 0.5  # of ordinary distortions: visible at a glance, the content untouched
WORST = 5  # how many of the worst examples are kept for each metric and attack


@dataclass(frozen=True)
class RobustnessReport:
    """Distances of images to changed versions of themselves, under each of some metrics.

    Attributes:
        images: the N images' names.
        skipped: for each file that was left out, why.
        size: side of the square crops, in pixels.
        seed: of augmentations and distortions; each attack has its own.
        metrics: for each metric its digest (`rlpips.checkpoints.tensors_digest` of its state dict), None for
            what is not a module.
        attacks: for each attack its class and settings.
        attacked: `attacked[source, attack][metric]` are distances `(N,)`, by `metric`, of images to versions
            that the attack made against `source`.
        augmented: for each metric `(2 * N,)`, a view of each image by the first of BYOL's two sets of
            augmentations, then one by the second.
        distorted: `distorted[metric][distortion]` are distances `(N,)`.
        worst: for each source and attack the images that were pushed farthest, with distances by the source.
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
        return attacked / ordinary if ordinary > 0 else math.inf

    def to_json(self) -> dict[str, Any]:
        """Return everything as lists, dicts and numbers, for `json.dumps`; what is not finite is None."""
        return {
            "rlpips": rlpips.__version__,
            "torch": torch.__version__,
            "seed": self.seed,
            "size": self.size,
            "strength": STRENGTH,
            "images": self.images,
            "skipped": self.skipped,
            "attacks": self.attacks,
            "metrics": {
                metric: {
                    "digest": digest,
                    "ordinary_median": _number(np.median(self.ordinary(metric))),
                    "augmented_median": _number(np.median(self.augmented[metric])),
                    "augmented": _numbers(self.augmented[metric]),
                    "distorted": {name: _numbers(found) for name, found in self.distorted[metric].items()},
                }
                for metric, digest in self.metrics.items()
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
    progress: Callable[[int, int], None] | None = None,
) -> RobustnessReport:
    """Attack each metric on images, and measure what the attacks, and visible changes, do to distances.

    Args:
        metrics: the metrics by name, each on `device`, of images `(N, 3, H, W)` in [-1, 1].
        images: image files. A square is cut from the middle of each; a file that cannot be read or is too
            small is skipped and named in the report.
        attacks: the attacks by name, on images in [-1, 1]; any but `SSA`, which needs triplets.
        batch_size: the most images that run at once.
        device: where to compute.
        size: side of the squares, in pixels.
        limit: the most images to take, the first ones; by default all.
        seed: of augmentations and distortions.
        save_images: a folder for the worst examples, made if there is none: PNG files of the original, the
            attacked image and their difference, magnified until it fills the range, side by side.
        progress: called with the number of images done and of all, once for each batch and attack.

    Returns:
        The distances.

    Raises:
        ImageError: no image is left.
        MissingExtraError: torchvision is not installed.
        OSError: `save_images` cannot be written.
        ValueError: no metric, no attack, an attack that does not fit, or crops too small for a metric.
    """
    if not metrics or not attacks:
        raise ValueError("pass at least one metric and at least one attack")
    for name, attack in attacks.items():
        if isinstance(attack, SSA):
            raise ValueError(f"the attack {name!r} needs triplets; self-distances have none")  # noqa: TRY004
        if tuple(attack.bounds) != (-1.0, 1.0):
            raise ValueError(f"the attack {name!r} must have bounds (-1, 1), got {attack.bounds}")
    augmentations = _byol(size)
    names, crops, skipped = _load(images, size, limit)
    device = torch.device(device)
    pairs = [(source, attack) for source in metrics for attack in attacks]
    attacked: dict[tuple[str, str], dict[str, list[Distances]]] = {
        pair: {metric: [] for metric in metrics} for pair in pairs
    }
    augmented: dict[str, list[list[Distances]]] = {metric: [[] for _ in augmentations] for metric in metrics}
    distorted: dict[str, dict[str, list[Distances]]] = {m: {d: [] for d in DISTORTIONS} for m in metrics}
    worst: dict[tuple[str, str], list[_Example]] = {pair: [] for pair in pairs}
    done, total = 0, len(crops) * (len(pairs) + 1)
    for start in range(0, len(crops), batch_size):
        numbers = range(start, min(start + batch_size, len(crops)))
        x = _batch([crops[number] for number in numbers], device)
        with torch.no_grad():
            anchors = {name: activated(metric, x) for name, metric in metrics.items()}
        for k, views in enumerate(_augmentations(augmentations, crops, numbers, seed)):
            for name, metric in metrics.items():
                augmented[name][k].append(_measure(metric, _batch(views, device), anchors[name]))
        for distortion in DISTORTIONS:
            versions = [_distort(crops[number], distortion, seed, number) for number in numbers]
            for name, metric in metrics.items():
                distorted[name][distortion].append(_measure(metric, _batch(versions, device), anchors[name]))
        done += len(numbers)
        if progress is not None:
            progress(done, total)
        for source, attack_name in pairs:
            found = attacks[attack_name](Inflate(metrics[source], x), x, numbers)
            for name, metric in metrics.items():
                attacked[source, attack_name][name].append(_measure(metric, found, anchors[name]))
            worst[source, attack_name] = _worst(
                worst[source, attack_name], numbers, attacked[source, attack_name][source][-1], found
            )
            done += len(numbers)
            if progress is not None:
                progress(done, total)
    if save_images is not None:
        _save(save_images, worst, names, crops)
    return RobustnessReport(
        images=names,
        skipped=skipped,
        size=size,
        seed=seed,
        metrics={name: _digest(metric) for name, metric in metrics.items()},
        attacks={name: _settings(attack) for name, attack in attacks.items()},
        attacked={pair: {m: np.concatenate(f) for m, f in by.items()} for pair, by in attacked.items()},
        augmented={
            name: np.concatenate([np.concatenate(view) for view in found])
            for name, found in augmented.items()
        },
        distorted={m: {d: np.concatenate(f) for d, f in by.items()} for m, by in distorted.items()},
        worst={pair: [(names[e.number], e.distance) for e in found] for pair, found in worst.items()},
    )


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
            image = load_image(path)
        except (OSError, ImageError) as error:
            skipped[str(path)] = str(error)
            continue
        height, width = image.shape[:2]
        if min(height, width) < size:
            skipped[str(path)] = f"{width} x {height} pixels are too few for a crop of {size} x {size}"
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


def _measure(metric: Metric, images: Tensor, anchor: Any) -> Distances:
    with torch.no_grad():
        return distances(metric, images, anchor).double().cpu().numpy()


def _distort(image: Bytes, distortion: str, seed: int, number: int) -> Bytes:
    # The name's checksum, not its place in the table, so that a new distortion changes no other's numbers.
    rng = np.random.default_rng((seed, number, zlib.crc32(distortion.encode())))
    return DISTORTIONS[distortion](image, STRENGTH, rng)


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


def _augmentations(
    augmentations: Sequence[Callable[[Tensor], Tensor]], crops: Sequence[Bytes], numbers: range, seed: int
) -> Iterator[list[Bytes]]:
    """Yield, for each set of augmentations, one view of each image."""
    for k, augment in enumerate(augmentations):
        views = []
        for number in numbers:
            state = np.random.SeedSequence((seed, number, k)).generate_state(1)
            # torchvision draws from the global generator alone, and that of the CPU for images there
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(int(state[0]))
                view = augment(torch.from_numpy(crops[number]).movedim(2, 0).contiguous())
            views.append(view.movedim(0, 2).numpy())
        yield views


@dataclass(frozen=True)
class _Example:
    """An attacked image, by its number, with its distance from the original."""

    number: int
    distance: float
    image: Tensor


def _worst(kept: list[_Example], numbers: range, found: Distances, images: Tensor) -> list[_Example]:
    """Return the examples of the largest distances among those kept and those of a batch."""
    order = np.argsort(-found, kind="stable")[:WORST]
    new = [_Example(numbers[i], float(found[i]), images[i].cpu()) for i in order]
    return sorted([*kept, *new], key=lambda example: (-example.distance, example.number))[:WORST]


def _save(
    folder: Path,
    worst: Mapping[tuple[str, str], Sequence[_Example]],
    names: Sequence[str],
    crops: Sequence[Bytes],
) -> None:
    """Write each example as `FOLDER/SOURCE/ATTACK/RANK-NAME.png`."""
    sources = _file_names([source for source, _ in worst])
    attacks = _file_names([attack for _, attack in worst])
    for (source, attack), examples in worst.items():
        place = folder / sources[source] / attacks[attack]
        place.mkdir(parents=True, exist_ok=True)
        for rank, example in enumerate(examples, 1):
            picture = _side_by_side(crops[example.number], example.image)
            path = place / f"{rank}-{Path(names[example.number]).stem}.png"
            write_atomically(path, picture)


def _side_by_side(original: Bytes, attacked: Tensor) -> bytes:
    """Return a PNG of the original, the attacked image and the difference, grey where there is none."""
    values = (attacked.double().movedim(0, 2).numpy() + 1) * 127.5
    difference = values - original
    gain = 127.5 / max(float(np.abs(difference).max()), 1e-6)
    columns = np.concatenate([original, values, 127.5 + gain * difference], axis=1)
    file = io.BytesIO()
    Image.fromarray(np.rint(columns.clip(0, 255)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _file_names(labels: Sequence[str]) -> dict[str, str]:
    """Return for each label a name that any file system takes, no two alike."""
    names: dict[str, str] = {}
    for label in dict.fromkeys(labels):
        name = re.sub(r"[^\w.=+-]+", "-", label).strip("-.") or "unnamed"
        taken = {each.lower() for each in names.values()}
        while name.lower() in taken:
            name += "-again"
        names[label] = name
    return names


def _digest(metric: Metric) -> str | None:
    return tensors_digest(metric.state_dict()) if isinstance(metric, nn.Module) else None


def _settings(attack: Attack) -> dict[str, Any]:
    settings = dataclasses.asdict(attack) if dataclasses.is_dataclass(attack) else vars(attack)
    return {"kind": type(attack).__name__, **settings}
