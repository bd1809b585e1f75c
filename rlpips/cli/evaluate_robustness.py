"""The command `rlpips evaluate robustness`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpips.cli.metrics import load_metric
from rlpips.cli.options import positive
from rlpips.cli.output import UNDEFINED, aligned, tell, write_json
from rlpips.cli.report_options import (
    add_attack_option,
    add_metrics_options,
    add_report_output,
    attack_on_images,
    attacks_by_name,
    check_options,
    settings,
    worst_of,
)

if TYPE_CHECKING:
    from rlpips.evaluation.robustness_report import RobustnessReport


def add_robustness(reports: Any) -> None:
    """Add the report to those of `rlpips evaluate`."""
    report = reports.add_parser(
        "robustness",
        help="how far attacks move images, in each metric",
        description="Attack each metric on images. Measure in all metrics how far the attacked images are "
        "from the originals, and compare with visible distortions and augmentations. The inflation is the "
        "median distance after an attack over the median distance after a visible distortion; below 1 is "
        "good.",
    )
    report.add_argument("--images", type=Path, required=True, metavar="DIR", help="a folder of images")
    add_metrics_options(report, batch_size=16)
    add_attack_option(report, attack_on_images, ["linf:4/255:10"])
    report.add_argument(
        "--size",
        type=positive,
        default=64,
        metavar="N",
        help="side of the square cut from the middle of each image, in pixels (default: 64)",
    )
    report.add_argument("--limit", type=positive, metavar="N", help="use only the first N images")
    add_report_output(report)
    report.set_defaults(run=_evaluate_robustness)


def _evaluate_robustness(options: argparse.Namespace) -> int:
    check_options(options)
    from rlpips.evaluation.figures import histograms
    from rlpips.evaluation.result_cache import ResultCache
    from rlpips.evaluation.robustness_measurement import robustness
    from rlpips.scoring.folders import visible_files
    from rlpips.system.processes import torchrun_group
    from rlpips.system.progress import progress

    images = visible_files(options.images)
    attacks = attacks_by_name(options)
    with (
        torchrun_group(options.device) as (processes, device),
        progress(unit="image", hidden=processes.rank > 0, leave=False) as bar,
    ):

        def tell_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        cache = ResultCache(options.output, processes)
        report = robustness(
            {text: load_metric(text, device) for text in options.weights},
            images,
            attacks,
            batch_size=options.batch_size,
            device=device,
            size=options.size,
            limit=options.limit,
            seed=options.seed,
            save_images=options.save_images,
            cache=cache,
            progress=tell_progress,
        ).with_worst_of(worst_of(attacks))
    if processes.rank == 0:
        try:
            if options.output is not None:
                document = report.to_json()
                document["settings"] |= settings(options)
                write_json(options.output, document)
        finally:
            print(_table(report))
        if options.plot is not None:
            histograms(report, options.plot)
        cache.remove()
        for path, problem in report.skipped.items():
            tell(problem, f"{path}:")
        for problem in report.undefined.values():
            tell(problem)
    return 1 if report.skipped or report.undefined else 0


def _table(report: "RobustnessReport") -> str:
    """Lay out the medians: a row for each kind of change, a column for each metric."""
    import numpy as np

    def medians(by_metric: dict[str, Any]) -> list[str]:
        return [cell(np.median(by_metric[metric]), 4) for metric in report.metrics]

    def cell(value: float, digits: int) -> str:
        return UNDEFINED if np.isnan(value) else f"{value:.{digits}f}"

    ordinary = {metric: report.ordinary(metric) for metric in report.metrics}
    rows = [["attacked", "attack", *report.metrics, "inflation"]]
    for (source, attack), by_metric in report.attacked.items():
        rows.append([source, attack, *medians(by_metric), cell(report.inflation(source, attack), 3)])
    rows.append(["-", "augmentations", *medians(report.augmented), ""])
    rows.append(["-", "distortions", *medians(ordinary), ""])
    count = len(report.images)
    return "\n".join(
        [*aligned(rows), f"{count} image{'s' if count != 1 else ''}, median distances in each metric"]
    )
