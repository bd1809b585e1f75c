"""The command `rlpips evaluate mos`."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpips.cli.metrics import load_metric
from rlpips.cli.options import add_output_option, add_plot_option, output_file
from rlpips.cli.output import aligned, score_cell, tell, write_json
from rlpips.cli.report_options import add_metrics_options, check_options, data_key, settings

if TYPE_CHECKING:
    import torch

    from rlpips.attacks.metrics import Metric
    from rlpips.data.judgement_tables import MOS
    from rlpips.evaluation.result_cache import Measurements, ResultCache
    from rlpips.evaluation.scores import Array


def add_mos(reports: Any) -> None:
    """Add the report to those of `rlpips evaluate`."""
    report = reports.add_parser(
        "mos",
        help="how different two images look: metrics against people's scores",
        description="Correlate the distances of metrics with people's scores of image pairs, over all pairs "
        "and by type: Spearman, Kendall (tau-b), and Pearson after a logistic fit. 1 is perfect agreement. "
        "The 95 % intervals resample groups (references), not pairs.",
    )
    report.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="TABLE",
        help="a CSV table with the columns ref, dist and mos, dmos or score, optionally group and type; "
        "paths are relative to its folder",
    )
    report.add_argument(
        "--higher-is",
        choices=["better", "worse"],
        help="what a higher score means (default: better in a column mos, worse in a column dmos)",
    )
    add_metrics_options(report, batch_size=8)
    group = report.add_argument_group("output")
    add_output_option(
        group,
        output_file,
        "write all numbers to FILE as JSON; if interrupted, run the same command again to continue",
    )
    add_plot_option(group, "draw scores against distances")
    report.set_defaults(run=_evaluate_mos)


def _evaluate_mos(options: argparse.Namespace) -> int:
    check_options(options)
    from rlpips.data.judgement_tables import MOS
    from rlpips.evaluation.mos_figure import scatter
    from rlpips.evaluation.result_cache import ResultCache
    from rlpips.system.processes import torchrun_group

    dataset = MOS(options.data, options.higher_is)
    with torchrun_group(options.device) as (processes, device):
        cache = ResultCache(options.output, processes)
        show = processes.rank == 0
        distances, digests, problems = _measure(options, dataset, cache, device, show=show)
    if show:
        _report(options, dataset, distances, digests, problems)
        if options.plot is not None and distances:
            label = f"{dataset.number} (higher is {dataset.higher_is})"
            scatter(distances, dataset.scores, dataset.types, options.plot, label)
        cache.remove()
        for problem in problems.values():
            tell(problem)
    return 1 if problems else 0


def _measure(
    options: argparse.Namespace, dataset: "MOS", cache: "ResultCache", device: "torch.device", *, show: bool
) -> "tuple[dict[str, Array], dict[str, str | None], dict[str, str]]":
    """Return distances, digests and problems by metric; measure what an earlier run has not measured."""
    from rlpips.errors import UndefinedDistanceError
    from rlpips.evaluation.mos_measurement import measure_mos
    from rlpips.evaluation.result_cache import Measurements
    from rlpips.hub.digests import metric_digest
    from rlpips.system.progress import progress

    data = data_key(options.data)
    distances: dict[str, Array] = {}
    digests: dict[str, str | None] = {}
    problems: dict[str, str] = {}
    bar = progress(total=len(dataset) * len(options.weights), unit="pair", hidden=not show, leave=False)

    def measure(metric: "Metric") -> "Measurements":
        sizes = {"batch_size": options.batch_size}
        d, _ = measure_mos(metric, dataset, device=device, progress=bar.update, **sizes)
        return Measurements({"d": d})

    for number, label in enumerate(options.weights, 1):
        bar.set_description(label)
        metric = load_metric(label, device)
        digests[label] = metric_digest(metric)
        key = {"metric": label, "digest": digests[label], **data}
        try:
            distances[label] = cache.get(key, partial(measure, metric)).columns["d"]
        except UndefinedDistanceError as error:  # the other metrics are still reported
            problems[label] = f"{label}: {error}"
        bar.update(number * len(dataset) - bar.n)  # by what other processes or an earlier run measured
    bar.close()
    return distances, digests, problems


def _report(
    options: argparse.Namespace,
    dataset: "MOS",
    distances: "dict[str, Array]",
    digests: dict[str, str | None],
    problems: dict[str, str],
) -> None:
    """Write the JSON if it was asked for, and print the table, even if the JSON cannot be written."""
    import numpy as np

    from rlpips.data.judgement_tables import EVERYTHING
    from rlpips.evaluation.report_json import report_header
    from rlpips.evaluation.score_correlations import CORRELATIONS, correlations

    types = np.array(dataset.types)
    chosen = {EVERYTHING: np.arange(len(dataset))}
    if len(set(dataset.types)) > 1:
        chosen |= {name: np.flatnonzero(types == name) for name in dict.fromkeys(dataset.types)}
    rows = [["metric", "type", *(f"{name} [95 %]" for name in CORRELATIONS), "pairs", "groups"]]
    records: list[dict[str, Any]] = []
    for label in options.weights:
        for name, positions in chosen.items():
            d = distances.get(label, np.full(len(dataset), np.nan))[positions]
            groups = [dataset.groups[i] for i in positions]
            scores = correlations(d, dataset.worse[positions], groups, seed=options.seed)
            cells = [score_cell(score) for score in scores.values()]
            rows.append([label, name, *cells, str(len(positions)), str(len(set(groups)))])
            found = {each: vars(score) for each, score in scores.items()}
            problem = {"problem": problems[label]} if label in problems else {}
            records.append({"metric": label, "type": name, **found, "groups": len(set(groups)), **problem})
    try:
        if options.output is not None:
            write_json(options.output, {
                **report_header(options.seed, digests, settings(options)),
                "higher_is": dataset.higher_is,
                "results": records,
                "pairs": _pairs(dataset),
                "distances": {label: d.tolist() for label, d in distances.items()},
            })  # fmt: skip
    finally:
        print("\n".join(aligned(rows)))


def _pairs(dataset: "MOS") -> dict[str, Any]:
    """Return what the report holds of the pairs, as columns in the order of the distances."""
    files = [dataset.files_of(i) for i in range(len(dataset))]
    return {
        **{column: [str(each[column]) for each in files] for column in ("ref", "dist")},
        "score": dataset.scores.tolist(),
        "type": dataset.types,
        "group": dataset.groups,
    }
