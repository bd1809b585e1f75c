"""Find near-duplicates among photos with FAISS: ordinary copies, and copies that an attacker made.

    pip install faiss-cpu
    python examples/near_duplicates.py PHOTOS

The photos become thumbnails, the thumbnails become vectors, and the vectors go into a FAISS index. FAISS'
L2 is the squared distance, so the index finds the nearest neighbours by the metric, with the metric's
distances. Then the script looks up copies of some of the photos. The copies are compressed, blurred or
brightened. Others are attacked: no value changes by more than 4/255, and the metric puts the copy as far
from its original as the attack can make it. A copy counts as found if the nearest photo is its original,
and is less than half as far away as the two most similar photos are from each other.
"""

import argparse
from pathlib import Path

import faiss
import numpy as np
import torch

import rlpips
from rlpips.attacks import PGD, Inflate
from rlpips.data import DISTORTIONS
from rlpips.images import resize, to_tensor
from rlpips.pairwise import embed, pdist

DISTORTED = {"jpeg": 0.6, "gaussian-blur": 0.15, "brightness": 0.3}


def thumbnails(folder: Path, count: int, size: int = 64) -> torch.Tensor:
    """Read `count` photos, spread over the files of a folder, as `(count, 3, size, size)` in [-1, 1]."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = files[:: max(1, len(files) // count)][:count]
    return torch.cat([resize(to_tensor(file)[0], (size, size)).clamp(-1, 1) for file in chosen])


def found(metric: rlpips.LPIPS, photos: torch.Tensor, queries: int) -> dict[str, int]:
    """Count how many copies of the first photos are found, for each kind of copy."""
    embeddings = embed(metric, photos)
    index = faiss.IndexFlatL2(embeddings.shape[1])
    index.add(embeddings.numpy())
    threshold = pdist(metric, embeddings).min().item() / 2

    originals = photos[:queries]
    copies = {
        name: torch.stack([DISTORTIONS[name](x, strength, np.random.default_rng(0)) for x in originals])
        for name, strength in DISTORTED.items()
    }
    copies["attacked"] = PGD("linf", eps=4 / 255, steps=20)(Inflate(metric, originals), originals)

    counts = {}
    for name, images in copies.items():
        distances, numbers = index.search(embed(metric, images).numpy(), 1)
        right = (numbers[:, 0] == np.arange(queries)) & (distances[:, 0] < threshold)
        counts[name] = int(right.sum())
    return counts


def main() -> None:
    """Print how many copies LPIPS and the robust metric find."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder of photos")
    parser.add_argument("--count", type=int, default=400, help="how many to search (400)")
    parser.add_argument("--queries", type=int, default=40, help="of how many to look up copies (40)")
    options = parser.parse_args()
    photos = thumbnails(options.photos, options.count)
    for weights in ("standard", "robust"):
        counts = found(rlpips.LPIPS(weights=weights), photos, options.queries)
        print(
            f"{weights:9}", *(f"{name} {count}/{options.queries}" for name, count in counts.items()), sep="  "
        )


if __name__ == "__main__":
    main()
