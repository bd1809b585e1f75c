"""Train a small network with L1 alone, with L1 and LPIPS, and with L1 and the robust metric.

`python -m benchmarks.network_loss PHOTOS` trains networks that enlarge photos four times. Every fifth photo
is kept aside, as in the training of the robust metric, and the networks are measured on these. Networks of
one seed start from the same weights and see the same crops.

The metric's weight in the loss follows one rule for both metrics. At the start of training, its gradient is
four times as long as that of L1, as long, or a quarter as long. The gradient is that of all weights of the
network, and its length is the mean over a few batches. The results are written after each network.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import piq
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from tqdm import tqdm

import rlpips
from benchmarks import report
from benchmarks.reconstruct import draw

SCALE = 4
CROP, BATCH, RATE = 64, 8, 1e-3
TEST_SIZE, TEST_COUNT = 96, 100
WEIGHTING_BATCHES = 8
LOSSES = (  # the metric beside L1, and how long its gradient is at the start, in lengths of L1's
    ("L1", None, 0.0),
    ("L1 + LPIPS", "standard", 4.0),
    ("L1 + robust", "robust", 4.0),
    ("L1 + LPIPS", "standard", 1.0),
    ("L1 + robust", "robust", 1.0),
    ("L1 + LPIPS", "standard", 0.25),
    ("L1 + robust", "robust", 0.25),
)

Metric = Callable[[Tensor, Tensor], Tensor]


class Enlarger(nn.Module):
    """A small residual network that adds to bicubic enlargement what it misses. Images are in [-1, 1]."""

    def __init__(self, channels: int = 32, blocks: int = 5) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
            )
            for _ in range(blocks)
        )
        self.tail = nn.Conv2d(channels, 3 * SCALE**2, 3, padding=1)
        assert self.tail.bias is not None
        with torch.no_grad():  # starts close to bicubic enlargement
            self.tail.weight.mul_(0.1)
            self.tail.bias.zero_()

    def forward(self, low: Tensor) -> Tensor:
        """Enlarge a batch."""
        features = self.head(low)
        for block in self.blocks:
            features = features + block(features)
        return enlarge(low) + F.pixel_shuffle(self.tail(features), SCALE)


def enlarge(low: Tensor) -> Tensor:
    """Enlarge images by bicubic interpolation."""
    return F.interpolate(low, scale_factor=SCALE, mode="bicubic")


def shrink(images: Tensor) -> Tensor:
    """Shrink images with a filter against aliasing, and round them to 8 bits."""
    return as_8_bits(F.interpolate(images, scale_factor=1 / SCALE, mode="bicubic", antialias=True))


def as_8_bits(images: Tensor) -> Tensor:
    """Clamp images in [-1, 1] and round them to the 256 values of a file."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def as_images(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels `(..., H, W, 3)` to images `(..., 3, H, W)` in [-1, 1]."""
    return pixels.movedim(-1, -3) / 127.5 - 1


def crops(photos: list[Tensor], seed: int) -> Iterator[Tensor]:
    """Yield batches of random crops of random photos."""
    generator = torch.Generator().manual_seed(seed)

    def number(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    while True:
        batch = []
        for _ in range(BATCH):
            photo = photos[number(len(photos))]
            top, left = (number(side - CROP + 1) for side in photo.shape[:2])
            batch.append(photo[top : top + CROP, left : left + CROP])
        yield as_images(torch.stack(batch))


def metric_weight(network: nn.Module, metric: Metric, photos: list[Tensor], seed: int) -> float:
    """Return the weight that makes the metric's gradient as long as L1's, at the start of training."""
    lengths = torch.zeros(2)
    for images in islice(crops(photos, seed), WEIGHTING_BATCHES):
        output = network(shrink(images))
        for i, loss in enumerate((F.l1_loss(output, images), metric(output, images).mean())):
            gradients = torch.autograd.grad(loss, list(network.parameters()), retain_graph=i == 0)
            lengths[i] += torch.cat([each.flatten() for each in gradients]).norm()
    return float(lengths[0] / lengths[1])


def train(
    photos: list[Tensor], metric: Metric | None, share: float, steps: int, seed: int
) -> tuple[nn.Module, float]:
    """Return a trained network, and the metric's weight in its loss."""
    torch.manual_seed(seed)
    network = Enlarger()
    weight = share * metric_weight(network, metric, photos, seed) if metric else 0.0
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for images in tqdm(islice(crops(photos, seed), steps), total=steps, leave=False, mininterval=1):
        output = network(shrink(images))
        loss = F.l1_loss(output, images)
        if metric:
            loss = loss + weight * metric(output, images).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return network, weight


def scores(outputs: Tensor, targets: Tensor, judges: dict[str, Metric]) -> dict[str, float]:
    """Return the means over the images of what each judge says of outputs beside targets."""
    result: dict[str, float] = {}
    for name, judge in judges.items():
        pairs = zip(torch.split(outputs, 10), torch.split(targets, 10), strict=True)
        result[name] = torch.cat([judge(*pair).flatten() for pair in pairs]).mean().item()
    return result


def make_judges(standard: Metric, robust: Metric) -> dict[str, Metric]:
    """Return the measures of the table; LPIPS and the robust metric are also losses, the others are not."""

    def on_01(measure: Callable[..., Tensor]) -> Metric:
        return lambda a, b: measure((a + 1) / 2, (b + 1) / 2, reduction="none")

    return {
        "PSNR": on_01(piq.psnr),
        "SSIM": on_01(piq.ssim),
        "HaarPSI": on_01(piq.haarpsi),
        "LPIPS": standard,
        "robust": robust,
        "LPIPS, VGG16": rlpips.LPIPS(net="vgg", check_range=False),
    }


def read(folder: Path) -> tuple[list[Tensor], Tensor]:
    """Return the photos to train with, and squares of 100 of those kept aside."""
    files = sorted(folder.glob("*.jpg"))
    kept_aside = [torch.from_numpy(rlpips.load_image(file)) for file in files[::5]]
    squares = []
    for photo in kept_aside:
        if min(photo.shape[:2]) >= TEST_SIZE:
            top, left = ((side - TEST_SIZE) // 2 for side in photo.shape[:2])
            squares.append(photo[top : top + TEST_SIZE, left : left + TEST_SIZE])
    squares = squares[:: max(1, len(squares) // TEST_COUNT)][:TEST_COUNT]
    training = [torch.from_numpy(rlpips.load_image(file)) for i, file in enumerate(files) if i % 5]
    return training, as_images(torch.stack(squares))


def main() -> None:
    """Print the table, keep it, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="a folder of .jpg files")
    parser.add_argument("--steps", type=int, default=1500, help="of training, for each network (1500)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("-o", dest="output", type=Path, help="a picture of some results, as PNG")
    options = parser.parse_args()
    training, targets = read(options.photos)
    metrics: dict[str, Metric] = {
        name: rlpips.LPIPS(weights=name, check_range=False) for name in ("standard", "robust")
    }
    judges = make_judges(metrics["standard"], metrics["robust"])
    low = shrink(targets)
    rows: list[dict[str, Any]] = []
    shown: dict[str, tuple[Tensor, str]] = {}
    print(
        f"{'loss':12} share  seed  weight  {'  '.join(judges)}   {len(targets)} photos, {options.steps} steps"
    )

    def keep(name: str, share: float, seed: int | None, weight: float, outputs: Tensor) -> None:
        found = scores(outputs, targets, judges)
        values = "  ".join(f"{found[judge]:{len(judge)}.4g}" for judge in judges)
        print(
            f"{name:12} {share:5.2f}  {'' if seed is None else seed:>4}  {weight:6.3f}  {values}", flush=True
        )
        rows.append(
            {"loss": name, "share": share, "seed": seed, "weight": weight, "steps": options.steps, **found}
        )
        report.write("network_loss", rows)
        shown.setdefault(f"{name}, {share}" if share else name, (outputs[4::20], ""))

    with torch.no_grad():
        keep("bicubic", 0.0, None, 0.0, as_8_bits(enlarge(low)))
    for seed in options.seeds:
        for name, weights, share in LOSSES:
            metric = metrics[weights] if weights else None
            network, weight = train(training, metric, share, options.steps, seed)
            with torch.no_grad():
                keep(name, share, seed, weight, as_8_bits(network(low)))
    shown["target"] = targets[4::20], ""
    if options.output:
        draw(shown, options.output)


if __name__ == "__main__":
    main()
