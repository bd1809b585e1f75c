"""`python -m rlpips`: the command line, also for `torchrun -m rlpips train ...`."""

import sys

from rlpips.cli import main

if __name__ == "__main__":
    sys.exit(main())
