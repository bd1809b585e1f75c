"""What a distance means: medians of the robust metric's distances for ordinary changes of photos.

`python -m benchmarks.scale PHOTOS` takes a square of 224 pixels from each of a hundred photos. The square
starts 3 pixels from the corner, so that its JPEG blocks do not coincide with those of the photo.
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

import rlpips
from benchmarks import report

Pixels = npt.NDArray[np.uint8]
COUNT = 100


def jpeg(photo: Pixels, quality: int) -> Pixels:
    """Compress a photo."""
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def blur(photo: Pixels, sigma: float) -> Pixels:
    """Blur a photo with a Gaussian; sigma is in pixels."""
    return np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(sigma)))


def noise(photo: Pixels, sigma: float) -> Pixels:
    """Add Gaussian noise; sigma is in grey levels, of 255."""
    added = np.random.default_rng(0).normal(0, sigma, photo.shape)
    return (photo + added).round().clip(0, 255).astype(np.uint8)


CHANGES: dict[str, tuple[Callable[[Pixels, Any], Pixels], tuple[float, ...]]] = {
    "JPEG, quality": (jpeg, (90, 70, 40, 20, 10)),
    "blur, sigma": (blur, (0.5, 1, 2, 4)),
    "noise, sigma": (noise, (5, 10, 20, 40)),
}


def main(folder: Path) -> None:
    """Print the median of each change, and the tenth and the ninetieth percentile."""
    squares = (rlpips.load_image(file)[3:227, 3:227] for file in sorted(folder.glob("*.jpg")))
    large = [square for square in squares if square.shape == (224, 224, 3)]
    photos = np.stack(large[:: max(1, len(large) // COUNT)][:COUNT])
    changed = {
        f"{name} {strength}": np.stack([change(photo, strength) for photo in photos])
        for name, (change, strengths) in CHANGES.items()
        for strength in strengths
    }
    changed["another photo"] = np.roll(photos, len(photos) // 2, axis=0)  # names that sort far apart
    rows = []
    for name, images in changed.items():
        distances = [rlpips.distance(*pair) for pair in zip(photos, images, strict=True)]
        low, median, high = np.percentile(distances, (10, 50, 90))
        print(f"{name:18} {median:.3f}   {low:.3f} to {high:.3f}")
        rows.append({"change": name, "median": median, "10 %": low, "90 %": high, "photos": len(photos)})
    report.write("scale", rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
