"""The command `rlpips evaluate jnd`."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpips.cli.judgement_reports import ReportSpecification, report_judgements
from rlpips.cli.judgement_results import Task
from rlpips.cli.report_options import add_data_options, add_report_output, resized

if TYPE_CHECKING:
    import torch

    from rlpips.attacks.metrics import Metric
    from rlpips.evaluation.pictures import Image
    from rlpips.evaluation.scores import Array


def add_jnd(reports: Any) -> None:
    """Add the report to those of `rlpips evaluate`."""
    report = reports.add_parser(
        "jnd",
        help="whether two images look the same: metrics against people",
        description="Score metrics on pairs against people's answers by mean average precision, with 95 % "
        "confidence intervals.",
    )
    add_data_options(report, "jnd")
    add_report_output(report)
    report.set_defaults(run=_evaluate_jnd)


def _evaluate_jnd(options: argparse.Namespace) -> int:
    from rlpips.data.judgements import JND
    from rlpips.evaluation.figures import agreement
    from rlpips.evaluation.judgement_measurement import measure_jnd
    from rlpips.evaluation.pictures import magnified_difference
    from rlpips.evaluation.result_cache import Measurements
    from rlpips.evaluation.scores import disagreement, jnd_score

    def measure(metric: "Metric", task: Task, device: "torch.device", progress: Any) -> Measurements:
        dataset = resized(JND(options.data, [task["subset"]]), options)
        sizes = {"batch_size": options.batch_size, "limit": options.limit}
        d, same = measure_jnd(metric, dataset, device=device, progress=progress, **sizes)
        return Measurements({"d": d, "same": same})

    def picture(item: Mapping[str, Any], attacked: "Image | None", perturb: str) -> "list[Image]":  # noqa: ARG001
        p0, p1 = item["p0"].numpy(), item["p1"].numpy()
        return [p0, p1, magnified_difference(p0, p1)]

    def draw(judged: "dict[str, dict[str, Sequence[Array]]]", path: Path) -> None:
        agreement({metric: (d, same) for metric, cases in judged.items() for d, same in cases.values()}, path)

    specification = ReportSpecification(
        columns=("d", "same"),
        measure=measure,
        statistics={"mAP": jnd_score},
        badness=disagreement,
        picture=picture,
        draw=draw,
    )
    return report_judgements(options, resized(JND(options.data, options.subsets), options), specification)
