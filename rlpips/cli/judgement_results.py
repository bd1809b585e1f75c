"""Measurements of metrics on people's judgements, for `judgement_reports`."""

import argparse
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from rlpips.cli.metrics import load_metric
from rlpips.cli.report_options import data_key

if TYPE_CHECKING:
    import torch

    from rlpips.cli.judgement_reports import ReportSpecification
    from rlpips.data.resized import Judgements
    from rlpips.evaluation.result_cache import Measurements, ResultCache

Task = dict[str, str]
"""By these names: a metric, a subset, an attack ('none' for none), and what it perturbs ('-' for nothing)."""


@dataclass(frozen=True)
class Results:
    """What was measured.

    Attributes:
        positions: for each subset, the positions of its examples in the data set.
        digests: for each metric, the digest of its tensors.
        measured: tasks and their measurements.
        undefined: tasks in which the metric gave NaN, with the message.
    """

    positions: dict[str, list[int]]
    digests: dict[str, str | None] = field(default_factory=dict)
    measured: "list[tuple[Task, Measurements]]" = field(default_factory=list)
    undefined: list[tuple[Task, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Pooled:
    """What one metric gave in one case, on all subsets together.

    Attributes:
        measurements: the columns, and images by position in the data set.
        positions: the positions of the columns' examples in the data set.
        perturb: the images that were attacked.
    """

    measurements: "Measurements"
    positions: list[int]
    perturb: str


def measure_judgements(
    options: argparse.Namespace,
    dataset: "Judgements",
    specification: "ReportSpecification",
    cache: "ResultCache",
    device: "torch.device",
    *,
    show: bool,
) -> Results:
    """Measure what an earlier run has not measured, and show how far it is."""
    from rlpips.errors import UndefinedDistanceError
    from rlpips.hub.digests import metric_digest
    from rlpips.system.progress import progress

    positions: dict[str, list[int]] = {subset: [] for subset in dataset.subsets}
    for i in range(len(dataset)):
        positions[dataset.subset_of(i)].append(i)
    results = Results({subset: found[: options.limit] for subset, found in positions.items()})
    data = data_key(options.data)
    cases = [("none", "-"), *((a, p) for a in specification.attacks for p in specification.perturb)]
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
                run = {"digest": digest, **data, "size": options.size}
                key = {**task, **run, "count": len(found), "seed": options.seed}
                measure = partial(specification.measure, metric, task, device, bar.update)
                try:
                    results.measured.append((task, cache.get(key, measure)))
                except UndefinedDistanceError as error:  # the other tasks are still reported
                    results.undefined.append((task, f"{label}: {error}"))
                done += len(found)
                bar.update(done - bar.n)  # by what other processes or an earlier run measured
            _add_worst_of({"metric": label, "subset": subset}, specification, results)
    bar.close()
    return results


def _add_worst_of(part: Task, specification: "ReportSpecification", results: Results) -> None:
    """Add what the strongest of attacks with equal budgets did to each example of a subset, in one metric."""
    from rlpips.evaluation.worst_examples import worst_of

    for name, attacks in specification.worst_of.items():
        for perturb in specification.perturb:
            task = {**part, "attack": name, "perturb": perturb}
            tasks = [{**part, "attack": attack, "perturb": perturb} for attack in attacks]
            problems = [problem for each, problem in results.undefined if each in tasks]
            if problems:
                results.undefined.append((task, problems[0]))
            else:
                found = [measured for each, measured in results.measured if each in tasks]
                results.measured.append((task, worst_of(found, specification.columns, specification.badness)))


def pool(results: Results) -> dict[str, dict[str, Pooled]]:
    """Join all subsets, for each metric and case."""
    import numpy as np

    from rlpips.evaluation.result_cache import Measurements

    groups: dict[tuple[str, str, str], list[tuple[str, Measurements]]] = {}
    for task, measured in results.measured:
        groups.setdefault((task["metric"], task["attack"], task["perturb"]), []).append(
            (task["subset"], measured)
        )
    pooled: dict[str, dict[str, Pooled]] = {}
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
        pooled.setdefault(metric, {})[case] = Pooled(joined, positions, perturb)
    return pooled
