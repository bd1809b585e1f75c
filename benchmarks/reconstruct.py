"""Rebuild pictures from noise by minimising a metric, with nothing else in the loss.

Every metric gets the same pictures, the same noise and the same steps of Adam on the pixels.
The table gives the mean PSNR and SSIM (from `piq`) of the results.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import piq
import torch
from torch import Tensor
from tqdm import tqdm

import rlpips
from rlpips.images import read_image, to_tensor


def reconstruct(metric: rlpips.LPIPS, photos: Tensor, steps: int, rate: float = 0.05) -> Tensor:
    """Start from noise, minimise the distance to photos `(N, 3, H, W)` in [-1, 1]; return the images."""
    noise = torch.rand(photos.shape, generator=torch.Generator().manual_seed(0))
    pixels = (0.2 * (noise - 0.5)).requires_grad_()
    optimizer = torch.optim.Adam([pixels], rate)
    target = metric.reference(photos)
    for step in tqdm(range(steps), leave=False):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        torch.autograd.backward(metric(pixels.clamp(-1, 1), target).sum())
        optimizer.step()
        with torch.no_grad():
            pixels.clamp_(-1, 1)
    return pixels.detach()


def draw(columns: dict[str, tuple[Tensor, str]], path: Path) -> None:
    """Write a picture: a row for each photo, a column for each metric, with its name and scores on top."""
    rows = len(next(iter(columns.values()))[0])
    figure, grid = plt.subplots(
        rows, len(columns), figsize=(3 * len(columns), 3 * rows + 0.5), layout="constrained", squeeze=False
    )
    for axes, (name, (images, scores)) in zip(grid.T, columns.items(), strict=True):
        for each, image in zip(axes, images, strict=True):
            each.imshow(rlpips.tensor2im(image[None]), interpolation="nearest")
            each.axis("off")
        axes[0].set_title(f"{name}\n{scores}", fontsize=13)
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})


def main() -> None:
    """Print the table and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="PHOTO")
    parser.add_argument("--weights", nargs="+", default=["standard", "robust"])
    parser.add_argument("--size", type=int, default=96, help="of the crop from the middle")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("-o", dest="output", type=Path, help="the picture, as PNG")
    options = parser.parse_args()
    size, crops = options.size, []
    for path in options.files:
        image = read_image(path)
        top, left = ((side - size) // 2 for side in image.shape[:2])
        crops.append(to_tensor(image[top : top + size, left : left + size])[0])
    photos = torch.cat(crops)
    columns = {"target": (photos, "")}
    print(f"{'weights':24} {'PSNR':>7} {'SSIM':>7}   {len(photos)} of {size} px, {options.steps} steps")
    for weights in options.weights:
        found = reconstruct(rlpips.LPIPS(weights=weights, check_range=False), photos, options.steps)
        a, b = (found + 1) / 2, (photos + 1) / 2
        psnr, ssim = piq.psnr(a, b).item(), piq.ssim(a, b).item()
        print(f"{weights:24} {psnr:7.2f} {ssim:7.3f}")
        name = {"standard": "from noise, by LPIPS", "robust": "from noise, by the robust metric"}.get(weights)
        columns[name or f"from noise, by {weights}"] = found, f"PSNR {psnr:.1f} dB, SSIM {ssim:.2f}"
    if options.output:
        draw(columns, options.output)


if __name__ == "__main__":
    main()
