"""What `evaluate 2afc` and `evaluate jnd` share: reports on people's judgements."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpips.cli.judgement_results import Pooled, Results, Task, measure_judgements, pool
from rlpips.cli.output import UNDEFINED, aligned, score_cell, tell, write_json
from rlpips.cli.report_options import check_options, settings, worst_of

if TYPE_CHECKING:
    import torch

    from rlpips.attacks.base import Attack
    from rlpips.attacks.metrics import Metric
    from rlpips.data.resized import Judgements
    from rlpips.evaluation.pictures import Image
    from rlpips.evaluation.result_cache import Measurements
    from rlpips.evaluation.scores import Array


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
        attacks: the attacks under which the metrics are measured, by name, besides no attack.
        perturb: the images that each attack perturbs, one case each.
    """

    columns: tuple[str, ...]
    measure: "Callable[[Metric, Task, torch.device, Callable[[int], Any]], Measurements]"
    statistics: "Mapping[str, Callable[..., float]]"
    badness: "Callable[..., Array]"
    picture: "Callable[[Mapping[str, Any], Image | None, str], list[Image]]"
    draw: "Callable[[dict[str, dict[str, Sequence[Array]]], Path], Any]"
    attacks: "Mapping[str, Attack]" = field(default_factory=dict)
    perturb: Sequence[str] = ()

    @property
    def worst_of(self) -> dict[str, list[str]]:
        """The names of attacks that have a budget in common, under the name of the strongest of them."""
        return worst_of(self.attacks)


def report_judgements(
    options: argparse.Namespace, dataset: "Judgements", specification: ReportSpecification
) -> int:
    """Measure every metric on every subset, without and under each attack, and report.

    Args:
        options: of the command.
        dataset: all subsets.
        specification: of the report.
    """
    check_options(options)
    from rlpips.evaluation.result_cache import ResultCache
    from rlpips.system.processes import torchrun_group

    with torchrun_group(options.device) as (processes, device):
        cache = ResultCache(options.output, processes)
        show = processes.rank == 0
        results = measure_judgements(options, dataset, specification, cache, device, show=show)
    if show:
        _report_scores(options, dataset, specification, results)
        pooled = pool(results)
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


def _report_scores(
    options: argparse.Namespace,
    dataset: "Judgements",
    specification: ReportSpecification,
    results: Results,
) -> None:
    """Write the JSON if it was asked for, and print the table, even if the JSON cannot be written."""
    from rlpips.evaluation.report_json import attack_settings, report_header, worst_of_settings
    from rlpips.evaluation.scores import bootstrap

    statistics = specification.statistics
    names = ("metric", "subset", "attack", "perturb")
    rows = [[*names, *(f"{name} [95 %]" for name in statistics), "examples"]]
    records: list[dict[str, Any]] = []
    for task, measured in results.measured:
        columns = measured.columns
        groups = [dataset.group_of(i) for i in results.positions[task["subset"]]]
        scores = {
            name: bootstrap(statistic, *columns.values(), groups=groups, seed=options.seed)
            for name, statistic in statistics.items()
        }
        count = len(columns[specification.columns[0]])
        rows.append([*task.values(), *map(score_cell, scores.values()), str(count)])
        values = {name: column.tolist() for name, column in columns.items()}
        records.append({**task, **{name: vars(score) for name, score in scores.items()}, **values})
    for task, problem in results.undefined:
        rows.append([*task.values(), *[UNDEFINED for _ in statistics], "-"])
        records.append({**task, **dict.fromkeys(statistics), "problem": problem})
    try:
        if options.output is not None:
            attacks = {name: attack_settings(attack) for name, attack in specification.attacks.items()}
            for name, members in specification.worst_of.items():
                attacks[name] = worst_of_settings(members)
            header = report_header(options.seed, results.digests, {**settings(options), "attacks": attacks})
            write_json(options.output, {**header, "results": records})
    finally:
        print("\n".join(aligned(rows)))


def _columns(specification: ReportSpecification, pooled: Pooled) -> "list[Array]":
    return [pooled.measurements.columns[name] for name in specification.columns]


def _save_worst(
    folder: Path,
    specification: ReportSpecification,
    dataset: "Judgements",
    pooled: dict[str, dict[str, Pooled]],
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
