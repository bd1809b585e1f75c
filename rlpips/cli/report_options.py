"""Options that the reports of `rlpips evaluate` share."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpips.cli.metrics import check_metric
from rlpips.cli.options import (
    add_device_option,
    add_output_option,
    add_plot_option,
    output_file,
    output_folder,
    positive,
    seed,
)

if TYPE_CHECKING:
    from rlpips.attacks.base import Attack
    from rlpips.data.resized import Judgements


def add_data_options(
    report: argparse.ArgumentParser, kind: str, unit: str = "examples", or_table: str = ""
) -> None:
    """Add the options of reports on people's judgements, in data sets of this kind: '2afc' or 'jnd'.

    `unit` is what a batch holds. `or_table` says what table `--data` may be instead.
    """
    report.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"a data set in the layout of BAPPS; it holds {kind}/{or_table}",
    )
    report.add_argument(
        "--subsets", nargs="+", metavar="SUBSET", help="subsets, such as val/cnn (default: all of val)"
    )
    add_metrics_options(report, batch_size=32, unit=unit)
    report.add_argument(
        "--limit", type=positive, metavar="N", help="use only the first N examples of each subset"
    )
    report.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="resize all images to N x N pixels first, bilinearly with antialiasing",
    )


def add_metrics_options(report: argparse.ArgumentParser, batch_size: int, unit: str = "examples") -> None:
    """Add the options that name the metrics, and how they are measured."""
    report.add_argument(
        "--weights",
        nargs="+",
        default=["robust"],
        metavar="METRIC",
        help="the metrics: weights as for 'rlpips distance', also for another net (vgg:standard); piq:NAME "
        "for a classical metric: ssim, ms-ssim, mse, psnr, haarpsi, fsim, gmsd, mdsi, vsi or vif; or "
        "MODULE:FUNCTION, a Python function that returns a metric (default: robust)",
    )
    add_device_option(report)
    report.add_argument(
        "--batch-size",
        type=positive,
        default=batch_size,
        metavar="N",
        help=f"{unit} that run at once (default: {batch_size})",
    )
    report.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of all random draws (default: 0)"
    )


def add_attack_option(report: argparse.ArgumentParser, kind: Any, default: list[str]) -> None:
    """Add the option that names attacks, which `kind` checks."""
    report.add_argument(
        "--attack",
        nargs="+",
        type=kind,
        default=default,
        metavar="NAME:EPS:STEPS",
        help="attacks, such as linf:4/255:50, with 2 restarts linf:4/255:50x2, with each of two budgets "
        "linf:4/255,8/255:50. NAME is linf, l2, apgd-linf, apgd-l2 or ssa, with EPS on the [0, 1] scale, or "
        "stadv, with EPS in pixels. Of attacks with the same norm and EPS, 'worst of' reports the strongest "
        f"for each image (default: {' '.join(default) or 'none'})",
    )


def add_report_output(report: argparse.ArgumentParser) -> None:
    """Add the options for what a report writes besides its table."""
    group = report.add_argument_group("output")
    add_output_option(
        group,
        output_file,
        "write all numbers to FILE as JSON; if interrupted, run the same command again to continue",
    )
    add_plot_option(group, "draw histograms")
    group.add_argument(
        "--save-images",
        type=output_folder,
        metavar="DIR",
        help="save the worst examples of each metric and attack, with the magnified difference beside them",
    )


def attack(text: str) -> str:
    """Check an attack while the command line is read, so that a wrong one is wrong usage."""
    from rlpips.attacks.parse import parse_attacks

    try:
        parse_attacks(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def attack_on_images(text: str) -> str:
    """Check an attack that does not need triplets."""
    if attack(text).startswith("ssa:"):
        raise argparse.ArgumentTypeError(f"{text!r} needs triplets; images alone have none")
    return text


def attacks_by_name(options: argparse.Namespace) -> "dict[str, Attack]":
    """Return the attacks of `--attack`, one for each budget, by their text with this budget alone."""
    from rlpips.attacks.parse import parse_attacks

    parsed = [parse_attacks(text, seed=options.seed) for text in options.attack]
    return {name: attack for attacks in parsed for name, attack in attacks.items()}


def worst_of(attacks: "Mapping[str, Attack]") -> dict[str, list[str]]:
    """Return the names of attacks with equal budgets, by what reports call the strongest of them."""
    from rlpips.attacks.parse import with_equal_budgets

    return {f"worst of {budget}": names for budget, names in with_equal_budgets(attacks).items()}


def resized(dataset: "Judgements", options: argparse.Namespace) -> "Judgements":
    """Return a data set whose images have the size of `--size`."""
    from rlpips.data.resized import Resized

    return dataset if options.size is None else Resized(dataset, (options.size, options.size))


def check_options(options: argparse.Namespace) -> None:
    """Check before the work what would fail after it.

    Raises:
        MissingExtraError: matplotlib is not installed, and there is a figure to draw, or a metric needs an
            extra that is not installed.
        ValueError: a metric is named twice, or there is no such metric.
    """
    for text in options.weights:
        if options.weights.count(text) > 1:
            raise ValueError(f"--weights names {text!r} twice")
    for text in options.weights[1:]:  # the first is loaded before anything is measured
        check_metric(text)
    if options.plot is not None:
        from rlpips.plots import check_plot_file

        check_plot_file(options.plot)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a report's numbers depend on, for its JSON."""
    names = ("data", "images", "subsets", "attack", "perturb", "size", "limit", "batch_size", "device")
    given = {name: value for name, value in vars(options).items() if name in names}
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}


def data_key(path: Path) -> dict[str, str]:
    """Say which data results are of: a folder by its place, a table by its place and content."""
    from rlpips.hub.digests import file_digest

    key = {"data": str(path.resolve())}
    return {**key, "table": file_digest(path, "sha256")} if path.is_file() else key
