"""`python -m benchmarks` measures the speed of the metric; the other benchmarks are modules of their own."""

from benchmarks.speed import main

main()
