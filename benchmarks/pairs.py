"""All pairs of a set of images: embeddings and their distances, against `lpips` on every pair.

`lpips` runs both images of every pair through the backbone, 64 pairs at a time. Both use the same random
AlexNet and heads, and are timed in turn, without gradients, in float32.
"""

import statistics

import torch

import rlpips
from benchmarks import peers, report
from benchmarks.timing import in_turn, ratio
from rlpips.pairwise import pdist


def main(count: int = 64, size: int = 64, rounds: int = 3) -> None:
    """Print medians, the ratio, pair by pair, and the largest difference in values."""
    metrics = peers.metrics("alex")
    ours, theirs = metrics["rlpips"], metrics["lpips"]
    assert isinstance(ours, rlpips.LPIPS)
    torch.manual_seed(0)
    images = torch.rand(count, 3, size, size) * 2 - 1
    first, second = torch.triu_indices(count, count, 1)

    @torch.no_grad()
    def all_pairs() -> torch.Tensor:
        batches = zip(torch.split(first, 64), torch.split(second, 64), strict=True)
        return torch.cat([theirs(images[i], images[j]).flatten() for i, j in batches])

    times = in_turn({"lpips": all_pairs, "rlpips": lambda: pdist(ours, images)}, rounds)
    print(f"all pairs of {count} images, {size} px, float32, {torch.get_num_threads()} threads")
    milliseconds = {name: statistics.median(each) * 1000 for name, each in times.items()}
    faster, difference = ratio(times, "lpips", "rlpips"), (pdist(ours, images) - all_pairs()).abs().max()
    for name, each in milliseconds.items():
        print(f"{name:12} {each:8.1f} ms")
    print(f"{'ratio':12} {faster:8.1f}")
    print(f"{'difference':12} {difference:8.1e}")
    row = {"count": count, "size": size, "ms": milliseconds, "ratio": faster, "difference": difference.item()}
    report.write("pairs", [row])


if __name__ == "__main__":
    main()
