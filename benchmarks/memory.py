"""Peak memory of a loss step, beyond inputs and weights, against `lpips`, each in its own process.

The peak is the kernel's (Linux). It is reset after a first small step, so it counts only the step itself.
"""

import contextlib
import io
import subprocess
import sys
import warnings
from pathlib import Path

import torch

from benchmarks import report

MIB = 1 << 20


def peak(name: str, net: str, size: int) -> float:
    """Return the peak of a loss step of two images in MiB."""
    import lpips

    import rlpips

    warnings.simplefilter("ignore")
    make = {"lpips": lpips.LPIPS, "rlpips": rlpips.LPIPS}[name]
    with contextlib.redirect_stdout(io.StringIO()):
        metric = make(net=net, pnet_rand=True)
    x, y = (torch.rand(2, 3, size, size) * 2 - 1 for _ in range(2))
    small = torch.rand(1, 3, 64, 64).requires_grad_()
    metric(small, small.detach() / 2).sum().backward()
    x.requires_grad_()
    process = Path("/proc/self")
    before = int((process / "statm").read_text().split()[1]) * 4096
    (process / "clear_refs").write_text("5")
    metric(x, y).sum().backward()
    (line,) = (each for each in (process / "status").read_text().splitlines() if each.startswith("VmHWM"))
    return (int(line.split()[1]) * 1024 - before) / MIB


def main(size: int = 512) -> None:
    """Print both peaks and their ratio."""
    result = []
    print(f"peak memory of a loss step, 2x3x{size}x{size}, both images new")
    for net in ("alex", "vgg"):
        mib = {}
        for name in ("rlpips", "lpips"):
            code = f"from benchmarks.memory import peak; print(peak({name!r}, {net!r}, {size}))"
            run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
            mib[name] = float(run.stdout)
        ours = mib["rlpips"] / mib["lpips"]
        result.append({"net": net, "size": size, "mib": mib, "ratio": ours})
        print(
            f"{net:5} rlpips {mib['rlpips']:7.0f} MiB  lpips {mib['lpips']:7.0f} MiB  ratio {ours:.2f}",
            flush=True,
        )
    report.write("memory", result)


if __name__ == "__main__":
    main()
