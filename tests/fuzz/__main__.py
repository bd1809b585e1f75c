"""`PYTHONPATH=tests python -m fuzz [--count 20000] [--seed 0] [CAMPAIGN ...]`: the long campaigns."""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from fuzz.campaign import CAMPAIGNS, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("campaigns", nargs="*", metavar="CAMPAIGN", help=", ".join(CAMPAIGNS))
    parser.add_argument("--count", type=int, default=20000, help="examples of each campaign")
    parser.add_argument("--seed", type=int, default=0, help="of the first example")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # the package warns of what it mends
    failures = 0
    for name in options.campaigns or CAMPAIGNS:
        seed, end = options.seed, options.seed + options.count
        counts = {"taken": 0, "refused": 0}
        with tempfile.TemporaryDirectory() as folder:
            while seed < end:
                step = min(200, end - seed)
                try:
                    found = run(name, Path(tempfile.mkdtemp(dir=folder)), seed, step)
                    counts = {key: counts[key] + found[key] for key in counts}
                except AssertionError as error:
                    failures += 1
                    print(error, flush=True)
                seed += step
        print(f"{name}: {counts['taken']} taken, {counts['refused']} refused", flush=True)
    return 1 if failures else 0


sys.exit(main())
