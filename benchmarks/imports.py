"""The time of `import rlpips`, and of building a metric, beyond `import torch`.

Each statement runs in new processes, in turn with the others. The median wall time is printed.
"""

import statistics
import subprocess
import sys
import time
import warnings

from benchmarks import report

STATEMENTS = {
    "nothing": "pass",
    "import torch": "import torch",
    "import rlpips": "import rlpips",
    "from rlpips import LPIPS": "from rlpips import LPIPS",
    "import lpips": "import lpips",
    "rlpips --help": "import sys; from rlpips.cli import main; sys.argv = ['rlpips', '--help']; main()",
}


def main(rounds: int = 5) -> None:
    """Print a table."""
    warnings.simplefilter("ignore")
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for number in range(rounds + 1):
        for name, statement in STATEMENTS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=False, capture_output=True)
            if number:  # the first round fills the file cache
                times[name].append(time.perf_counter() - start)
    print(f"{'statement':26} {'median':>8} {'beyond torch':>13}")
    result = []
    for name, each in times.items():
        pairs = zip(each, times["import torch"], strict=True)
        beyond = statistics.median(ours - torch for ours, torch in pairs)
        result.append({"statement": name, "seconds": statistics.median(each), "beyond torch": beyond})
        print(f"{name:26} {statistics.median(each):7.2f}s {beyond:+12.2f}s")
    report.write("imports", result)


if __name__ == "__main__":
    main()
