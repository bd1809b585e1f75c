"""The command `rlpips evaluate`: how good metrics are, each sub-command by one measure."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpips.cli_parts import columns, files, output_file, positive, write_output

if TYPE_CHECKING:
    from rlpips.metric import LPIPS
    from rlpips.robustness import RobustnessReport

_NETS = ("alex", "vgg", "squeeze")


def add_evaluate(commands: Any) -> None:
    """Add the command and its sub-commands to the parser's `commands`."""
    evaluate = commands.add_parser("evaluate", help="how good metrics are: robustness")
    measures = evaluate.add_subparsers(title="measures", required=True, metavar="MEASURE")
    _add_robustness(measures)


def _add_robustness(measures: Any) -> None:
    command = measures.add_parser(
        "robustness",
        help="how far an attacker can push images from themselves",
        description="Attack each metric on images and measure, under all of them, how far the attacked "
        "images are from the originals, beside visible distortions and augmentations. Inflation is the "
        "median attacked distance over the median distance of visible distortions.",
        epilog="Exit status: 0 done, 1 some image could not be used, or an error, 2 wrong usage, "
        "130 interrupted.",
    )
    command.add_argument("--images", type=Path, required=True, metavar="DIR", help="a folder of images")
    _add_metrics_options(command)
    command.add_argument(
        "--attack",
        dest="attacks",
        nargs="+",
        type=_attack,
        default=["linf:4/255:10"],
        metavar="ATTACK",
        help="NAME:EPS:STEPS or NAME:EPS:STEPS:RESTARTS, of linf, l2, apgd-linf, apgd-l2, stadv "
        "(linf:4/255:10)",
    )
    command.add_argument("--size", type=positive, default=64, help="side of the crops from the middle (64)")
    command.add_argument("--limit", type=positive, metavar="N", help="take the first N images")
    command.add_argument("--seed", type=_seed, default=0, metavar="N", help="of all that is random (0)")
    group = command.add_argument_group("output")
    group.add_argument("-o", dest="output", type=output_file, metavar="FILE", help="every number, as JSON")
    group.add_argument("--plot", type=_plot_file, metavar="FILE", help="histograms, as .png or .pdf")
    group.add_argument("--save-images", type=Path, metavar="DIR", help="the worst examples, as PNG files")
    command.set_defaults(run=_robustness)


def _add_metrics_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("metrics")
    group.add_argument(
        "--weights",
        nargs="+",
        default=["standard"],
        metavar="WEIGHTS",
        help="'standard' (the default), 'robust', names from 'rlpips weights list', or checkpoint files; "
        "'vgg:standard' is on another backbone than --net",
    )
    group.add_argument("--net", choices=_NETS, default="alex", help="backbone (alex)")
    group.add_argument(
        "--device", default="cpu", help="where to compute: cpu (the default), cuda, cuda:1, mps"
    )
    group.add_argument("--batch-size", type=positive, default=16, metavar="N", help="images at once (16)")


def _metrics(options: argparse.Namespace) -> dict[str, "LPIPS"]:
    """Build the metrics that `--weights` names, by those texts."""
    from rlpips.metric import LPIPS

    metrics = {}
    for text in options.weights:
        if text in metrics:
            raise ValueError(f"--weights names {text!r} twice")
        net, _, weights = text.partition(":") if text.startswith(tuple(f"{n}:" for n in _NETS)) else (
            options.net, "", text
        )  # fmt: skip
        metrics[text] = LPIPS(net=net, weights=weights, check_range=False).to(options.device)
    return metrics


def _attack(text: str) -> str:
    """Check an attack while the command line is read, so that a wrong one is wrong usage."""
    from rlpips.attacks import SSA, parse_attack

    try:
        attack = parse_attack(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if isinstance(attack, SSA):
        raise argparse.ArgumentTypeError(f"{text!r} needs triplets; images alone have none")
    return text


def _plot_file(text: str) -> Path:
    path = output_file(text)
    if path.suffix.lower() not in (".png", ".pdf"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png or .pdf")
    return path


def _seed(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def _robustness(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from rlpips.attacks import parse_attack
    from rlpips.robustness import robustness

    if options.plot is not None:
        from rlpips.plots import check_plot_file, histograms

        check_plot_file(options.plot)
    images = files(options.images)
    with tqdm(unit="image", disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = robustness(
            _metrics(options),
            images,
            {text: parse_attack(text, seed=options.seed) for text in options.attacks},
            batch_size=options.batch_size,
            device=options.device,
            size=options.size,
            limit=options.limit,
            seed=options.seed,
            save_images=options.save_images,
            progress=progress,
        )
    print(_robustness_table(report))
    if options.output is not None:
        write_output(options.output, json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")
    if options.plot is not None:
        histograms(report, options.plot)
    for path, problem in report.skipped.items():
        print(f"rlpips: {problem if problem.startswith(path) else f'{path}: {problem}'}", file=sys.stderr)
    return 1 if report.skipped else 0


def _robustness_table(report: "RobustnessReport") -> str:
    """Lay medians out, with a row for each kind of change and a column for each metric."""
    import numpy as np

    def medians(by_metric: dict[str, Any]) -> list[str]:
        return [f"{np.median(by_metric[metric]):.4f}" for metric in report.metrics]

    ordinary = {metric: report.ordinary(metric) for metric in report.metrics}
    rows = [["attacked", "attack", *report.metrics, "inflation"]]
    for (source, attack), by_metric in report.attacked.items():
        rows.append([source, attack, *medians(by_metric), f"{report.inflation(source, attack):.3f}"])
    rows.append(["-", "augmentations", *medians(report.augmented), ""])
    rows.append(["-", "distortions", *medians(ordinary), ""])
    count = len(report.images)
    return "\n".join(
        [*columns(rows), f"{count} image{'s' if count != 1 else ''}, median distances under each metric"]
    )
