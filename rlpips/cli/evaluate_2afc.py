"""The command `rlpips evaluate 2afc`."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlpips.cli.judgement_reports import ReportSpecification, report_judgements
from rlpips.cli.judgement_results import Task
from rlpips.cli.report_options import (
    add_attack_option,
    add_data_options,
    add_report_output,
    attack,
    attacks_by_name,
    resized,
)

if TYPE_CHECKING:
    import torch

    from rlpips.attacks.metrics import Metric
    from rlpips.evaluation.pictures import Image


def add_2afc(reports: Any) -> None:
    """Add the report to those of `rlpips evaluate`."""
    report = reports.add_parser(
        "2afc",
        help="which of two images is closer to a third: metrics against people",
        description="Score metrics on triplets against people's answers, without an attack and under each "
        "attack, with 95 % confidence intervals. 2AFC gives credit by the share of people who agree; "
        "accuracy counts agreement with the majority.",
    )
    add_data_options(
        report,
        "2afc",
        or_table="; or a CSV table with the columns ref, a, b and votes, the share of people who chose b, "
        "optionally group and type (the subsets); paths are relative to its folder",
    )
    add_attack_option(report, attack, [])
    report.add_argument(
        "--perturb",
        nargs="+",
        default=["x0"],
        choices=["x0", "x1", "ref", "x0+x1"],
        help="the images that are attacked (default: x0)",
    )
    add_report_output(report)
    report.set_defaults(run=_evaluate_2afc)


def _evaluate_2afc(options: argparse.Namespace) -> int:
    from rlpips.attacks.ssa import SSA
    from rlpips.data.judgement_tables import TwoAFCTable
    from rlpips.data.judgements import TwoAFC
    from rlpips.evaluation.figures import margins
    from rlpips.evaluation.judgement_measurement import measure_2afc
    from rlpips.evaluation.pictures import magnified_difference
    from rlpips.evaluation.result_cache import Measurements
    from rlpips.evaluation.scores import accuracy, margin, mean_of, two_afc_score
    from rlpips.evaluation.worst_examples import WorstImages

    kind = TwoAFCTable if options.data.is_file() else TwoAFC
    attacks = attacks_by_name(options)
    for text, each in attacks.items():
        if isinstance(each, SSA) and not {"x0", "x1"} >= set(options.perturb):
            raise ValueError(f"{text}: ssa attacks x0 or x1, not {', '.join(options.perturb)}")

    def measure(metric: "Metric", task: Task, device: "torch.device", progress: Any) -> Measurements:
        worst = WorstImages()
        d0, d1, judge = measure_2afc(
            metric,
            resized(kind(options.data, [task["subset"]]), options),
            attacks.get(task["attack"]),
            task["perturb"] if task["attack"] in attacks else "x0",
            batch_size=options.batch_size,
            device=device,
            limit=options.limit,
            worst=worst,
            progress=progress,
        )
        return Measurements({"d0": d0, "d1": d1, "judge": judge}, worst.images())

    def picture(item: Mapping[str, Any], attacked: "Image | None", perturb: str) -> "list[Image]":
        images = {"ref": item["ref"].numpy(), "x0": item["p0"].numpy(), "x1": item["p1"].numpy()}
        row = list(images.values())
        if attacked is not None:
            names = perturb.split("+")
            for name, image in zip(names, attacked.reshape(len(names), *images["ref"].shape), strict=True):
                row += [image, magnified_difference(images[name], image)]
        return row

    specification = ReportSpecification(
        columns=("d0", "d1", "judge"),
        measure=measure,
        statistics={"2AFC": mean_of(two_afc_score), "accuracy": mean_of(accuracy)},
        badness=lambda d0, d1, judge: -margin(d0, d1, judge),
        picture=picture,
        draw=margins,
        attacks=attacks,
        perturb=list(dict.fromkeys(options.perturb)),
    )
    return report_judgements(options, resized(kind(options.data, options.subsets), options), specification)
