"""Time several ways of doing the same work in turn, so that other load on the machine affects all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def in_turn(
    runs: Mapping[str, Callable[[], Any]], rounds: int, finish: Callable[[], Any] = lambda: None
) -> dict[str, list[float]]:
    """Return the seconds that each way took, `rounds` times, after one round that does not count.

    `finish` waits for work that a run left on a device.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            finish()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """Return the time of one way over that of another: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))
