"""The distances of pairs of files as a report: a summary, CSV and JSON."""

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpips._version import __version__
from rlpips.metric.lpips import LPIPS
from rlpips.scoring.failures import Failure
from rlpips.scoring.file_pairs import FilePairs
from rlpips.scoring.many_pairs import Measured, measure_all, measure_pairs


@dataclass(frozen=True)
class PairReport:
    """What came of measuring pairs of files.

    Attributes:
        measured: the pairs that have a distance, in order.
        failures: the files and pairs that could not be measured.
        left_out: files that are not images.
    """

    measured: list[Measured]
    failures: list[Failure]
    left_out: list[Path]

    def summary(self) -> dict[str, float | None]:
        """Return the mean distance, its standard error and the median; None for those without a value."""
        values = [each.distance for each in self.measured]
        return {
            "mean": statistics.fmean(values) if values else None,
            "standard_error": statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None,
            "median": statistics.median(values) if values else None,
        }

    def to_csv(self) -> str:
        """Return a line for each measured pair: both paths and the distance."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["a", "b", "distance"])
        writer.writerows([each.a, each.b, f"{each.distance:.9g}"] for each in self.measured)
        return text.getvalue()

    def to_json(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return everything as lists, dicts and numbers, for `json.dumps`.

        Args:
            settings: what the distances depend on, such as the metric's weights.
        """
        return {
            "rlpips": __version__,
            **settings,
            **self.summary(),
            "pairs": [
                {"a": str(each.a), "b": str(each.b), "distance": each.distance} for each in self.measured
            ],
            "failed": [failure.to_json() for failure in self.failures],
            "left_out": [str(path) for path in self.left_out],
        }


def measure_files(
    file_pairs: FilePairs,
    metric: LPIPS,
    *,
    batch_size: int | None = None,
    resize: tuple[int, int] | None = None,
    tile: int | None = None,
    progress: Callable[[int], object] = lambda pairs: None,  # noqa: ARG005
) -> PairReport:
    """Measure pairs of files, and collect what could not be measured.

    All pairs of some images run each image through the backbone once, except in tiles.

    Args:
        file_pairs: the pairs.
        metric: the metric, on the device where it shall run.
        batch_size: the most pairs that run at once (16), or images where all their pairs are measured (64).
        resize: (height, width) to which all images are resized.
        tile: for huge images, the side of the tiles that run one at a time, as in `LPIPS.forward`.
        progress: called with the number of pairs measured since the last call.

    Raises:
        ImageError: a file that could be read at first could not be read again.
    """
    given: dict[str, Any] = {"resize": resize} | ({} if batch_size is None else {"batch_size": batch_size})
    if file_pairs.all_of and tile is None:
        results = measure_all(file_pairs.all_of, metric, progress=progress, **given)
    else:
        results = _counted(measure_pairs(file_pairs.pairs, metric, tile=tile, **given), progress)
    measured: list[Measured] = []
    failures = list(file_pairs.failures)
    unreadable: dict[Path, str] = {}
    for result in results:
        unreadable |= result.unreadable
        if result.problem:
            failures.append(Failure(result.a, result.problem, result.b))
        elif not result.unreadable:
            measured.append(result)
    failures += [Failure(path, problem) for path, problem in unreadable.items()]
    return PairReport(measured, failures, list(file_pairs.left_out))


def _counted(results: Iterator[Measured], progress: Callable[[int], object]) -> Iterator[Measured]:
    for result in results:
        progress(1)
        yield result
