"""Reconstruct pictures from noise by descending a metric: a loss is only as good as what it is minimal at.

Every metric gets the same pictures, the same noise, the same steps of Adam on the pixels and nothing else.
The table gives the mean PSNR and SSIM (of `piq`) of what they end with.
"""

import argparse
from pathlib import Path

import piq
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import rlpips
from rlpips.images import read_image, to_tensor


def reconstruct(metric: rlpips.LPIPS, photos: Tensor, steps: int, rate: float = 0.05) -> Tensor:
    """Return images `(N, 3, H, W)` in [-1, 1], from noise, as near to the photos as the metric makes them."""
    noise = torch.rand(photos.shape, generator=torch.Generator().manual_seed(0))
    pixels = (0.2 * (noise - 0.5)).requires_grad_()
    optimizer = torch.optim.Adam([pixels], rate)
    target = metric.reference(photos)
    for step in tqdm(range(steps), leave=False):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        metric(pixels.clamp(-1, 1), target).sum().backward()
        optimizer.step()
        with torch.no_grad():
            pixels.clamp_(-1, 1)
    return pixels.detach()


def main() -> None:
    """Print the table and write the picture: a row for each photo; the photo, then each metric's image."""
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
    columns = [photos]
    print(f"{'weights':24} {'PSNR':>7} {'SSIM':>7}   {len(photos)} of {size} px, {options.steps} steps")
    for weights in options.weights:
        found = reconstruct(rlpips.LPIPS(weights=weights, check_range=False), photos, options.steps)
        a, b = (found + 1) / 2, (photos + 1) / 2
        print(f"{weights:24} {piq.psnr(a, b):7.2f} {piq.ssim(a, b):7.3f}")
        columns.append(found)
    if options.output:
        rows = [torch.cat([column[i] for column in columns], dim=2) for i in range(len(photos))]
        Image.fromarray(rlpips.tensor2im(torch.cat(rows, dim=1)[None])).save(options.output)


if __name__ == "__main__":
    main()
