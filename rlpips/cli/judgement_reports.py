"""Reports on people's judgements: measure metrics in each case on each subset, print, write, draw, show."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpips.cli.metrics import load_metric
from rlpips.cli.options import check, settings
from rlpips.cli.output import UNDEFINED, aligned, tell, write_json

if TYPE_CHECKING:
    import torch

    from rlpips.attacks.metrics import Metric
    from rlpips.data.judgements import JND, TwoAFC
    from rlpips.evaluation.pictures import Image
    from rlpips.evaluation.result_cache import Measurements
    from rlpips.evaluation.scores import Array, Score


@dataclass(frozen=True)
class Judged:
    """What differs between reports on people's judgements.

    Attributes:
        columns: names of what is measured.
        measure: measures one metric in one task.
        statistics: the scores' names, and what makes them of columns.
        badness: values examples, by their columns; the largest are the worst.
        picture: gives the images to show of an example, of the attacked image and what that replaces.
        draw: draws columns by metric and case to a file.
    """

    columns: tuple[str, ...]
    measure: "Callable[[Metric, dict[str, str], torch.device, Callable[[int], Any]], Measurements]"
    statistics: "Mapping[str, Callable[..., float]]"
    badness: "Callable[..., Array]"
    picture: "Callable[[Mapping[str, Any], Image | None, str], list[Image]]"
    draw: "Callable[[dict[str, dict[str, Sequence[Array]]], Path], Any]"


def report_judged(
    options: argparse.Namespace, dataset: "TwoAFC | JND", cases: list[tuple[str, str]], report: Judged
) -> int:
    """Measure every metric on every subset in every case, and report."""
    check(options)
    from rlpips.errors import UndefinedDistanceError
    from rlpips.evaluation.result_cache import ResultCache
    from rlpips.hub.digests import metric_digest
    from rlpips.system.processes import torchrun_group
    from rlpips.system.progress import progress

    positions: dict[str, list[int]] = {subset: [] for subset in dataset.subsets}
    for i in range(len(dataset)):
        positions[dataset.subset_of(i)].append(i)
    positions = {subset: rows[: options.limit] for subset, rows in positions.items()}
    results: list[tuple[dict[str, str], Measurements]] = []
    undefined: list[tuple[dict[str, str], str]] = []
    digests = {}
    with torchrun_group(options.device) as (processes, device):
        cache = ResultCache(options.output, processes)
        total = sum(map(len, positions.values())) * len(cases) * len(options.weights)
        bar = progress(total=total, unit="example", hidden=processes.rank > 0, leave=False)
        done = 0
        for label in options.weights:
            metric = load_metric(label, device)
            digests[label] = metric_digest(metric)
            for subset, rows in positions.items():
                for attack, perturb in cases:
                    task = {"metric": label, "subset": subset, "attack": attack, "perturb": perturb}
                    bar.set_description(" ".join(task.values()))
                    run = {"digest": digests[label], "data": str(options.data.resolve()), "count": len(rows)}
                    key = {**task, **run, "seed": options.seed}
                    measure = partial(report.measure, metric, task, device, bar.update)
                    try:
                        results.append((task, cache.get(key, measure)))
                    except UndefinedDistanceError as error:  # of this metric; what others give is reported
                        undefined.append((task, f"{label}: {error}"))
                    done += len(rows)
                    bar.update(done - bar.n)  # what other processes did, or an earlier run
        bar.close()
    if processes.rank == 0:
        _print_scores(options, report, results, undefined, digests)
        pooled = _pool(results, positions)
        if options.plot is not None and pooled:
            drawn: dict[str, dict[str, Sequence[Array]]] = {
                metric: {
                    case: [each.columns[name] for name in report.columns] for case, (each, _, _) in by.items()
                }
                for metric, by in pooled.items()
            }
            report.draw(drawn, options.plot)
        if options.save_images is not None:
            _save_worst(options.save_images, report, dataset, pooled)
        cache.remove()
        for _, problem in undefined:
            tell(problem)
    return 1 if undefined else 0


def _print_scores(
    options: argparse.Namespace,
    report: Judged,
    results: "list[tuple[dict[str, str], Measurements]]",
    undefined: list[tuple[dict[str, str], str]],
    digests: dict[str, str | None],
) -> None:
    """Write the JSON where it was asked for, and print the table, which no failure to write keeps back."""
    from rlpips.evaluation.report_json import report_header
    from rlpips.evaluation.scores import bootstrap

    names = ("metric", "subset", "attack", "perturb")
    rows = [[*names, *(f"{name} [95 %]" for name in report.statistics), "examples"]]
    records: list[dict[str, Any]] = []
    for task, measured in results:
        each = measured.columns
        scored = {
            name: bootstrap(statistic, *each.values(), seed=options.seed)
            for name, statistic in report.statistics.items()
        }
        cells = [_cell(score) for score in scored.values()]
        rows.append([*task.values(), *cells, str(len(each[report.columns[0]]))])
        values = {name: column.tolist() for name, column in each.items()}
        records.append({**task, **{name: vars(score) for name, score in scored.items()}, **values})
    for task, problem in undefined:
        rows.append([*task.values(), *[UNDEFINED for _ in report.statistics], "-"])
        records.append({**task, **dict.fromkeys(report.statistics), "problem": problem})
    try:
        if options.output is not None:
            document = {**report_header(options.seed, digests, settings(options)), "results": records}
            write_json(options.output, document)
    finally:
        print("\n".join(aligned(rows)))


def _cell(score: "Score") -> str:
    if math.isnan(score.value):
        return UNDEFINED
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _pool(
    results: "list[tuple[dict[str, str], Measurements]]", positions: dict[str, list[int]]
) -> "dict[str, dict[str, tuple[Measurements, list[int], str]]]":
    """Put all subsets together: by metric and case what was measured, at which positions, on what."""
    import numpy as np

    from rlpips.evaluation.result_cache import Measurements

    groups: dict[tuple[str, str, str], list[tuple[str, Measurements]]] = {}
    for task, measured in results:
        groups.setdefault((task["metric"], task["attack"], task["perturb"]), []).append(
            (task["subset"], measured)
        )
    pooled: dict[str, dict[str, tuple[Measurements, list[int], str]]] = {}
    for (metric, attack, perturb), group in groups.items():
        whole = Measurements(
            {name: np.concatenate([each.columns[name] for _, each in group]) for name in group[0][1].columns},
            {positions[subset][i]: image for subset, each in group for i, image in each.images.items()},
        )
        rows = [i for subset, _ in group for i in positions[subset]]
        case = "natural" if attack == "none" else f"{attack} on {perturb}"
        pooled.setdefault(metric, {})[case] = whole, rows, perturb
    return pooled


def _save_worst(
    folder: Path,
    report: Judged,
    dataset: "TwoAFC | JND",
    pooled: "dict[str, dict[str, tuple[Measurements, list[int], str]]]",
) -> None:
    """Write the worst examples as `FOLDER/METRIC/CASE/RANK-SUBSET-NAME.png`."""
    from rlpips.evaluation.pictures import file_names, save_side_by_side
    from rlpips.evaluation.worst_examples import worst_positions

    metrics = file_names(list(pooled))
    for metric, cases in pooled.items():
        names = file_names(list(cases))
        for case, (measured, rows, perturb) in cases.items():
            badness = report.badness(*(measured.columns[name] for name in report.columns))
            for rank, k in enumerate(worst_positions(badness), 1):
                example = dataset.name_of(rows[k]).replace("/", "-")
                path = folder / metrics[metric] / names[case] / f"{rank}-{example}.png"
                images = report.picture(dataset[rows[k]], measured.images.get(rows[k]), perturb)
                save_side_by_side(path, images)
