"""Memory and time of a pair of images, whole and in tiles.

Every row runs in its own process. Its memory is the peak of this process, with Python, torch, the (random)
weights and the images. Name rows on the command line as NET:HEIGHTxWIDTH:TILE, where TILE is 0 for none. Add
:step for forward and backward to one image: `python -m benchmarks.tiling vgg:2160x3840:512`.
"""

import resource
import subprocess
import sys
import time

ROWS = (
    *("vgg:1024x1024:0", "vgg:1024x1024:512", "vgg:1024x1024:256"),
    *("vgg:1024x1024:0:step", "vgg:1024x1024:512:step", "vgg:1024x1024:256:step"),
    *("vgg:2160x3840:512", "alex:2160x3840:0:step", "alex:2160x3840:512:step"),
)


def measure(row: str) -> None:
    """Run one row and print its distance, the peak of this process' memory, and the time."""
    import torch  # here, so that the parent process stays small

    import rlpips

    net, size, tile, *step = row.split(":")
    torch.manual_seed(0)
    metric = rlpips.LPIPS(net=net, pnet_rand=True)
    x, y = (torch.rand(1, 3, *map(int, size.split("x"))).mul_(2).sub_(1) for _ in range(2))
    start = time.perf_counter()
    distance = metric(x.requires_grad_(bool(step)), y, tile=int(tile) or None)
    if step:
        torch.autograd.backward(distance)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{row:28} {distance.item():12.7f} {peak:8.2f} GiB {seconds:8.1f} s", flush=True)


def main(rows: tuple[str, ...] = ROWS) -> None:
    """Print a table."""
    for row in rows:
        code = f"from benchmarks.tiling import measure; measure({row!r})"
        done = subprocess.run([sys.executable, "-c", code], check=False)
        if done.returncode:  # most likely killed because memory ran out
            print(f"{row:28} failed with status {done.returncode}", flush=True)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or ROWS)
