"""Benchmarks of this package; `python -m benchmarks` runs those of speed and memory."""

import os

# before torch, whose profiler reports each of its starts and ends otherwise
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
