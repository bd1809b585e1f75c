"""What `evaluate 2afc` and `evaluate jnd` share: measure metrics on people's judgements, and report."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpips.cli.metrics import load_metric
from rlpips.cli.output import UNDEFINED, aligned, tell, write_json
from rlpips.cli.report_options import check_options, settings

if TYPE_CHECKING:
    import torch

    from rlpips.attacks.metrics import Metric
    from rlpips.data.judgements import JND, TwoAFC
    from rlpips.evaluation.pictures import Image
    from rlpips.evaluation.result_cache import Measurements, ResultCache
    from rlpips.evaluation.scores import Array, Score


@dataclass(frozen=True)
class ReportSpecification:
    """What differs between reports on people's judgements.

    Attributes:
        columns: the names of what is measured of an example.
        measure: measures one metric in one task, on a device, and calls a function with the number of
            examples done.
        statistics: for each score its name, and the function that computes it from the columns.
        badness: computes from the columns how bad each example is; the largest values are the worst.
        picture: returns the images that show an example, from the example, the attacked images and the names
            of what they replace.
        draw: draws the columns, by metric and case, to a file.
    """

    columns: tuple[str, ...]
    measure: "Callable[[Metric, dict[str, str], torch.device, Callable[[int], Any]], Measurements]"
    statistics: "Mapping[str, Callable[..., float]]"
    badness: "Callable[..., Array]"
    picture: "Callable[[Mapping[str, Any], Image | None, str], list[Image]]"
    draw: "Callable[[dict[str, dict[str, Sequence[Array]]], Path], Any]"


@dataclass(frozen=True)
class _Results:
    """What was measured. A task is a metric, a subset, an attack and the images that it perturbs.

    Attributes:
        positions: for each subset, the positions of its examples in the data set.
        digests: for each metric, the digest of its tensors.
        measured: tasks and their measurements.
        undefined: tasks in which the metric gave NaN, with the message.
    """

    positions: dict[str, list[int]]
    digests: dict[str, str | None] = field(default_factory=dict)
    measured: "list[tuple[dict[str, str], Measurements]]" = field(default_factory=list)
    undefined: list[tuple[dict[str, str], str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Pooled:
    """What one metric gave in one case, on all subsets together.

    Attributes:
        measurements: the columns, and images by position in the data set.
        positions: the positions of the columns' examples in the data set.
        perturb: the images that were attacked.
    """

    measurements: "Measurements"
    positions: list[int]
    perturb: str


def report_judgements(
    options: argparse.Namespace,
    dataset: "TwoAFC | JND",
    cases: list[tuple[str, str]],
    specification: ReportSpecification,
) -> int:
    """Measure every metric on every subset in every case, and report.

    Args:
        options: of the command.
        dataset: all subsets.
        cases: attacks, 'none' for none, and the images that they perturb.
        specification: of the report.
    """
    check_options(options)
    from rlpips.evaluation.result_cache import ResultCache
    from rlpips.system.processes import torchrun_group

    with torchrun_group(options.device) as (processes, device):
        cache = ResultCache(options.output, processes)
        show = processes.rank == 0
        results = _measure(options, dataset, cases, specification, cache, device, show=show)
    if show:
        _report_scores(options, specification, results)
        pooled = _pool(results)
        if options.plot is not None and pooled:
            specification.draw(
                {
                    metric: {case: _columns(specification, each) for case, each in by_case.items()}
                    for metric, by_case in pooled.items()
                },
                options.plot,
            )
        if options.save_images is not None:
            _save_worst(options.save_images, specification, dataset, pooled)
        cache.remove()
        for _, problem in results.undefined:
            tell(problem)
    return 1 if results.undefined else 0


def _measure(
    options: argparse.Namespace,
    dataset: "TwoAFC | JND",
    cases: list[tuple[str, str]],
    specification: ReportSpecification,
    cache: "ResultCache",
    device: "torch.device",
    *,
    show: bool,
) -> _Results:
    """Measure what an earlier run has not measured, and show how far it is."""
    from rlpips.errors import UndefinedDistanceError
    from rlpips.hub.digests import metric_digest
    from rlpips.system.progress import progress

    positions: dict[str, list[int]] = {subset: [] for subset in dataset.subsets}
    for i in range(len(dataset)):
        positions[dataset.subset_of(i)].append(i)
    results = _Results({subset: found[: options.limit] for subset, found in positions.items()})
    total = sum(map(len, results.positions.values())) * len(cases) * len(options.weights)
    done = 0
    bar = progress(total=total, unit="example", hidden=not show, leave=False)
    for label in options.weights:
        metric = load_metric(label, device)
        digest = results.digests[label] = metric_digest(metric)
        for subset, found in results.positions.items():
            for attack, perturb in cases:
                task = {"metric": label, "subset": subset, "attack": attack, "perturb": perturb}
                bar.set_description(" ".join(task.values()))
                run = {"digest": digest, "data": str(options.data.resolve()), "count": len(found)}
                measure = partial(specification.measure, metric, task, device, bar.update)
                try:
                    measured = cache.get({**task, **run, "seed": options.seed}, measure)
                    results.measured.append((task, measured))
                except UndefinedDistanceError as error:  # the other tasks are still reported
                    results.undefined.append((task, f"{label}: {error}"))
                done += len(found)
                bar.update(done - bar.n)  # by what other processes or an earlier run measured
    bar.close()
    return results


def _report_scores(
    options: argparse.Namespace, specification: ReportSpecification, results: _Results
) -> None:
    """Write the JSON if it was asked for, and print the table, even if the JSON cannot be written."""
    from rlpips.evaluation.report_json import report_header
    from rlpips.evaluation.scores import bootstrap

    statistics = specification.statistics
    names = ("metric", "subset", "attack", "perturb")
    rows = [[*names, *(f"{name} [95 %]" for name in statistics), "examples"]]
    records: list[dict[str, Any]] = []
    for task, measured in results.measured:
        columns = measured.columns
        scores = {
            name: bootstrap(statistic, *columns.values(), seed=options.seed)
            for name, statistic in statistics.items()
        }
        count = len(columns[specification.columns[0]])
        rows.append([*task.values(), *map(_cell, scores.values()), str(count)])
        values = {name: column.tolist() for name, column in columns.items()}
        records.append({**task, **{name: vars(score) for name, score in scores.items()}, **values})
    for task, problem in results.undefined:
        rows.append([*task.values(), *[UNDEFINED for _ in statistics], "-"])
        records.append({**task, **dict.fromkeys(statistics), "problem": problem})
    try:
        if options.output is not None:
            header = report_header(options.seed, results.digests, settings(options))
            write_json(options.output, {**header, "results": records})
    finally:
        print("\n".join(aligned(rows)))


def _cell(score: "Score") -> str:
    if math.isnan(score.value):
        return UNDEFINED
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _pool(results: _Results) -> dict[str, dict[str, _Pooled]]:
    """Join all subsets, for each metric and case."""
    import numpy as np

    from rlpips.evaluation.result_cache import Measurements

    groups: dict[tuple[str, str, str], list[tuple[str, Measurements]]] = {}
    for task, measured in results.measured:
        groups.setdefault((task["metric"], task["attack"], task["perturb"]), []).append(
            (task["subset"], measured)
        )
    pooled: dict[str, dict[str, _Pooled]] = {}
    for (metric, attack, perturb), group in groups.items():
        names = group[0][1].columns
        joined = Measurements(
            {name: np.concatenate([each.columns[name] for _, each in group]) for name in names},
            {
                results.positions[subset][i]: image
                for subset, each in group
                for i, image in each.images.items()
            },
        )
        positions = [i for subset, _ in group for i in results.positions[subset]]
        case = "natural" if attack == "none" else f"{attack} on {perturb}"
        pooled.setdefault(metric, {})[case] = _Pooled(joined, positions, perturb)
    return pooled


def _columns(specification: ReportSpecification, pooled: _Pooled) -> "list[Array]":
    return [pooled.measurements.columns[name] for name in specification.columns]


def _save_worst(
    folder: Path,
    specification: ReportSpecification,
    dataset: "TwoAFC | JND",
    pooled: dict[str, dict[str, _Pooled]],
) -> None:
    """Write the worst examples as `FOLDER/METRIC/CASE/RANK-SUBSET-NAME.png`."""
    from rlpips.evaluation.pictures import file_names, save_side_by_side
    from rlpips.evaluation.worst_examples import worst_positions

    metrics = file_names(list(pooled))
    for metric, by_case in pooled.items():
        names = file_names(list(by_case))
        for case, each in by_case.items():
            badness = specification.badness(*_columns(specification, each))
            for rank, k in enumerate(worst_positions(badness), 1):
                position = each.positions[k]
                example = dataset.name_of(position).replace("/", "-")
                path = folder / metrics[metric] / names[case] / f"{rank}-{example}.png"
                attacked = each.measurements.images.get(position)
                save_side_by_side(path, specification.picture(dataset[position], attacked, each.perturb))
