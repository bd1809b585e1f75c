"""The command `rlpips evaluate`: reports on metrics, as a table, as JSON with every number, as pictures."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpips.cli.judgement_reports import Judged, report_judged
from rlpips.cli.metrics import load_metric
from rlpips.cli.options import (
    add_device_option,
    check,
    output_file,
    output_folder,
    plot_file,
    positive,
    settings,
)
from rlpips.cli.output import UNDEFINED, aligned, tell, write_json

if TYPE_CHECKING:
    import torch

    from rlpips.attacks.metrics import Metric
    from rlpips.evaluation.pictures import Image
    from rlpips.evaluation.robustness_report import RobustnessReport
    from rlpips.evaluation.scores import Array

_ATTACKS = (
    "linf, l2, apgd-linf, apgd-l2, ssa (EPS on the [0, 1] scale) or stadv (pixels), such as linf:4/255:50"
)


def add_evaluate(commands: Any) -> None:
    """Add the command and its reports to those of `rlpips`."""
    evaluate = commands.add_parser("evaluate", help="reports: agreement with people, alone and under attack")
    reports = evaluate.add_subparsers(title="reports", required=True, metavar="REPORT")

    report = reports.add_parser(
        "2afc",
        help="which of two images is closer to a third, compared with people's answers",
        description="Score metrics on triplets by 2AFC (credit by the share of judges) and by accuracy (the "
        "majority), as they are and under each attack, with 95 % confidence intervals.",
    )
    _add_data_options(report, "2afc")
    report.add_argument(
        "--attack", nargs="+", type=_attack, default=[], metavar="NAME:EPS:STEPS", help=_ATTACKS
    )
    report.add_argument(
        "--perturb",
        nargs="+",
        default=["x0"],
        choices=["x0", "x1", "ref", "x0+x1"],
        help="what is attacked (x0)",
    )
    report.set_defaults(run=_two_afc)

    report = reports.add_parser(
        "jnd",
        help="whether two images look the same, compared with people's answers",
        description="Score metrics on pairs by mean average precision, with 95 % confidence intervals.",
    )
    _add_data_options(report, "jnd")
    report.set_defaults(run=_jnd)

    report = reports.add_parser(
        "robustness",
        help="how far an attacker can push images from themselves",
        description="Attack each metric on images and measure, under all of them, how far the attacked "
        "images are from the originals, beside visible distortions and augmentations. Inflation is the "
        "median attacked distance over the median distance of visible distortions.",
    )
    report.add_argument("--images", type=Path, required=True, metavar="DIR", help="a folder of images")
    _add_metric_options(report, batch_size=16)
    report.add_argument(
        "--attack",
        nargs="+",
        type=_attack_on_images,
        default=["linf:4/255:10"],
        metavar="NAME:EPS:STEPS",
        help=_ATTACKS,
    )
    report.add_argument("--size", type=positive, default=64, help="side of the crops from the middle (64)")
    report.add_argument("--limit", type=positive, metavar="N", help="only the first N images")
    _add_output_options(report)
    report.set_defaults(run=_robustness)


def _add_metric_options(report: argparse.ArgumentParser, batch_size: int) -> None:
    report.add_argument(
        "--weights",
        nargs="+",
        default=["robust"],
        metavar="METRIC",
        help="weights as for 'rlpips distance', after another net's name and a colon (vgg:standard), or "
        "MODULE:FUNCTION of a Python module, which returns a metric (robust)",
    )
    add_device_option(report)
    report.add_argument(
        "--batch-size",
        type=positive,
        default=batch_size,
        metavar="N",
        help=f"examples at once ({batch_size})",
    )
    report.add_argument("--seed", type=_seed, default=0, metavar="N", help="of all that is random (0)")


def _add_data_options(report: argparse.ArgumentParser, kind: str) -> None:
    report.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"a data set in BAPPS' layout, which holds {kind}/",
    )
    report.add_argument("--subsets", nargs="+", metavar="SUBSET", help="such as val/cnn (all under val)")
    _add_metric_options(report, batch_size=32)
    report.add_argument(
        "--limit", type=positive, metavar="N", help="only the first N examples of each subset"
    )
    _add_output_options(report)


def _add_output_options(report: argparse.ArgumentParser) -> None:
    group = report.add_argument_group("output")
    group.add_argument(
        "-o",
        dest="output",
        type=output_file,
        metavar="FILE",
        help="write every number to FILE, as JSON; run again, an interrupted report goes on where it stopped",
    )
    group.add_argument("--plot", type=plot_file, metavar="FILE", help="histograms, as .png or .pdf")
    group.add_argument(
        "--save-images",
        type=output_folder,
        metavar="DIR",
        help="the worst examples of each metric and attack, side by side with the difference magnified",
    )


def _attack(text: str) -> str:
    """Check an attack while the command line is read, so that a wrong one is wrong usage."""
    from rlpips.attacks.parse import parse_attack

    try:
        parse_attack(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _attack_on_images(text: str) -> str:
    """Check an attack that has no triplets."""
    from rlpips.attacks.parse import parse_attack
    from rlpips.attacks.ssa import SSA

    if isinstance(parse_attack(_attack(text)), SSA):
        raise argparse.ArgumentTypeError(f"{text!r} needs triplets; images alone have none")
    return text


def _seed(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def _two_afc(options: argparse.Namespace) -> int:
    from rlpips.attacks.parse import parse_attack
    from rlpips.data.judgements import TwoAFC
    from rlpips.evaluation.figures import margins
    from rlpips.evaluation.judgement_measurement import measure_2afc
    from rlpips.evaluation.pictures import magnified_difference
    from rlpips.evaluation.result_cache import Measurements
    from rlpips.evaluation.scores import accuracy, margin, mean_of, two_afc_score
    from rlpips.evaluation.worst_examples import WorstImages

    attacks = {text: parse_attack(text, seed=options.seed) for text in options.attack}
    cases = [("none", "-")] + [(attack, perturb) for attack in attacks for perturb in options.perturb]
    for text in attacks:
        if text.startswith("ssa") and not {"x0", "x1"} >= set(options.perturb):
            raise ValueError(f"{text}: ssa attacks x0 or x1, not {', '.join(options.perturb)}")

    def measure(
        metric: "Metric", task: dict[str, str], device: "torch.device", progress: Any
    ) -> Measurements:
        worst = WorstImages()
        d0, d1, judge = measure_2afc(
            metric,
            TwoAFC(options.data, [task["subset"]]),
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

    report = Judged(
        columns=("d0", "d1", "judge"),
        measure=measure,
        statistics={"2AFC": mean_of(two_afc_score), "accuracy": mean_of(accuracy)},
        badness=lambda d0, d1, judge: -margin(d0, d1, judge),
        picture=picture,
        draw=margins,
    )
    return report_judged(options, TwoAFC(options.data, options.subsets), cases, report)


def _jnd(options: argparse.Namespace) -> int:
    from rlpips.data.judgements import JND
    from rlpips.evaluation.figures import agreement
    from rlpips.evaluation.judgement_measurement import measure_jnd
    from rlpips.evaluation.pictures import magnified_difference
    from rlpips.evaluation.result_cache import Measurements
    from rlpips.evaluation.scores import disagreement, jnd_score

    def measure(
        metric: "Metric", task: dict[str, str], device: "torch.device", progress: Any
    ) -> Measurements:
        dataset = JND(options.data, [task["subset"]])
        sizes = {"batch_size": options.batch_size, "limit": options.limit}
        d, same = measure_jnd(metric, dataset, device=device, progress=progress, **sizes)
        return Measurements({"d": d, "same": same})

    def picture(item: Mapping[str, Any], attacked: "Image | None", perturb: str) -> "list[Image]":  # noqa: ARG001
        p0, p1 = item["p0"].numpy(), item["p1"].numpy()
        return [p0, p1, magnified_difference(p0, p1)]

    def draw(judged: "dict[str, dict[str, Sequence[Array]]]", path: Path) -> None:
        agreement({metric: (d, same) for metric, cases in judged.items() for d, same in cases.values()}, path)

    report = Judged(("d", "same"), measure, {"mAP": jnd_score}, disagreement, picture, draw)
    return report_judged(options, JND(options.data, options.subsets), [("none", "-")], report)


def _robustness(options: argparse.Namespace) -> int:
    check(options)
    from rlpips.attacks.parse import parse_attack
    from rlpips.evaluation.figures import histograms
    from rlpips.evaluation.result_cache import ResultCache
    from rlpips.evaluation.robustness_measurement import robustness
    from rlpips.scoring.folders import visible_files
    from rlpips.system.processes import torchrun_group
    from rlpips.system.progress import progress

    images = visible_files(options.images)
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
            {text: parse_attack(text, seed=options.seed) for text in options.attack},
            batch_size=options.batch_size,
            device=device,
            size=options.size,
            limit=options.limit,
            seed=options.seed,
            save_images=options.save_images,
            cache=cache,
            progress=tell_progress,
        )
    if processes.rank == 0:
        try:
            if options.output is not None:
                document = report.to_json()
                document["settings"] |= settings(options)
                write_json(options.output, document)
        finally:
            print(_robustness_table(report))
        if options.plot is not None:
            histograms(report, options.plot)
        cache.remove()
        for path, problem in report.skipped.items():
            tell(problem, f"{path}:")
        for problem in report.undefined.values():
            tell(problem)
    return 1 if report.skipped or report.undefined else 0


def _robustness_table(report: "RobustnessReport") -> str:
    """Lay medians out, with a row for each kind of change and a column for each metric."""
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
        [*aligned(rows), f"{count} image{'s' if count != 1 else ''}, median distances under each metric"]
    )
