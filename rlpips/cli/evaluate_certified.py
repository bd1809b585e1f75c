"""The command `rlpips evaluate certified`."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from rlpips.cli.metrics import load_metric
from rlpips.cli.options import add_output_option, add_plot_option, output_file, positive
from rlpips.cli.output import UNDEFINED, aligned, tell, write_json
from rlpips.cli.report_options import add_data_options, check_options, data_key, settings

if TYPE_CHECKING:
    import torch

    from rlpips.data.judgement_tables import TwoAFCTable
    from rlpips.data.judgements import TwoAFC
    from rlpips.evaluation.certify import Certified
    from rlpips.evaluation.certify_measurement import CertifiedTriplets
    from rlpips.evaluation.result_cache import Measurements, ResultCache
    from rlpips.evaluation.scores import Array, Score

CHUNK = 16  # triplets after which results are kept, for a run that is interrupted


def add_certified(reports: Any) -> None:
    """Add the report to those of `rlpips evaluate`."""
    report = reports.add_parser(
        "certified",
        help="which decisions of smoothed metrics no small change can turn",
        description="Smooth each metric by Gaussian noise, and certify its decisions on triplets: no change "
        "of an image that is shorter than the certified radius can turn them. The certified accuracy at a "
        "radius is the share of triplets on which most people agree with the decision and the certified "
        "radius is larger. Radii and sigma are in the l2 norm, on the [0, 1] scale; with --size "
        "they are those of the resized images.",
    )
    add_data_options(report, "2afc", unit="noisy images", or_table="; or a CSV table, as for 2afc")
    report.add_argument(
        "--perturb",
        nargs="+",
        default=["ref"],
        choices=["ref", "x0", "x1", "all"],
        help="the image that carries noise and may change; with all, the radius is for the three changes "
        "together (default: ref)",
    )
    group = report.add_argument_group("certificate")
    group.add_argument(
        "--sigma",
        nargs="+",
        type=_positive_fraction,
        default=["0.12", "0.25"],
        metavar="S",
        help="standard deviations of the noise (default: 0.12 0.25)",
    )
    group.add_argument(
        "--n",
        "-n",  # torchrun takes --n for the beginning of an option of its own
        type=positive,
        default=1000,
        metavar="N",
        help="draws of noise that certify a decision; 100 others choose it (default: 1000)",
    )
    group.add_argument(
        "--alpha",
        type=_probability,
        default=0.001,
        metavar="P",
        help="how often a certificate may be wrong (default: 0.001)",
    )
    group.add_argument(
        "--radius",
        nargs="+",
        type=_positive_fraction,
        default=["36/255", "72/255", "108/255"],
        metavar="R",
        help="radii at which the certified accuracy is reported (default: 36/255 72/255 108/255)",
    )
    group = report.add_argument_group("output")
    add_output_option(
        group,
        output_file,
        "write all numbers to FILE as JSON; if interrupted, run the same command again to continue",
    )
    add_plot_option(group, "draw the certified accuracy over the radius")
    report.set_defaults(run=_evaluate_certified)


@dataclass(frozen=True)
class _Results:
    """What was measured. A task is a metric, a subset, a sigma and the images that carry noise.

    Attributes:
        digests: for each metric, the digest of its tensors.
        measured: tasks and their triplets.
        undefined: tasks in which the metric gave NaN, with the message.
        largest_radius: for each sigma, the largest radius that can be certified.
    """

    digests: dict[str, str | None] = field(default_factory=dict)
    measured: "list[tuple[dict[str, str], CertifiedTriplets]]" = field(default_factory=list)
    undefined: list[tuple[dict[str, str], str]] = field(default_factory=list)
    largest_radius: dict[str, float] = field(default_factory=dict)


def _evaluate_certified(options: argparse.Namespace) -> int:
    check_options(options)
    from rlpips.evaluation.result_cache import ResultCache
    from rlpips.system.processes import torchrun_group

    for name in ("sigma", "radius", "perturb"):
        setattr(options, name, list(dict.fromkeys(getattr(options, name))))
    with torchrun_group(options.device) as (processes, device):
        cache = ResultCache(options.output, processes)
        show = processes.rank == 0
        results = _measure(options, cache, device, show=show)
    if show:
        _report(options, results)
        if options.plot is not None and results.measured:
            _plot(options, results)
        cache.remove()
        for _, problem in results.undefined:
            tell(problem)
    return 1 if results.undefined else 0


def _measure(
    options: argparse.Namespace, cache: "ResultCache", device: "torch.device", *, show: bool
) -> _Results:
    """Measure what an earlier run has not measured, and show how far it is."""
    from rlpips.data.judgement_tables import TwoAFCTable
    from rlpips.data.judgements import TwoAFC
    from rlpips.errors import UndefinedDistanceError
    from rlpips.evaluation.certify import Certified
    from rlpips.hub.digests import metric_digest
    from rlpips.system.progress import progress

    kind = TwoAFCTable if options.data.is_file() else TwoAFC
    subsets = [kind(options.data, [name]) for name in kind(options.data, options.subsets).subsets]
    data = data_key(options.data)
    chosen = [(subset, range(len(subset))[: options.limit]) for subset in subsets]
    cases = list(product(chosen, options.sigma, options.perturb))
    total = sum(len(rows) for (_, rows), *_ in cases) * len(options.weights)
    results, done = _Results(), 0
    bar = progress(total=total, unit="triplet", hidden=not show, leave=False)
    for label in options.weights:
        metric = load_metric(label, device)
        results.digests[label] = metric_digest(metric)
        for (subset, rows), sigma, perturb in cases:
            task = {"metric": label, "subset": subset.subsets[0], "sigma": sigma, "perturb": perturb}
            bar.set_description(" ".join(task.values()))
            certified = Certified(
                metric,
                float(Fraction(sigma)),
                n=options.n,
                alpha=options.alpha,
                seed=options.seed,
                batch_size=options.batch_size,
            )
            results.largest_radius[sigma] = certified.largest_radius
            run = {"digest": results.digests[label], **data, "size": options.size}
            key = {**task, **run, "n": options.n, "alpha": options.alpha, "seed": options.seed}
            parts = []
            try:
                for start in range(0, len(rows), CHUNK):
                    part = rows[start : start + CHUNK]
                    measure = partial(
                        _measure_rows, certified, subset, perturb, options.size, part, device, bar.update
                    )
                    own = {**key, "rows": [part.start, part.stop]}
                    parts.append(cache.get(own, measure).columns)
                    bar.update(done + part.stop - bar.n)  # by what others or an earlier run measured
                results.measured.append((task, _joined(parts)))
            except UndefinedDistanceError as error:  # the other tasks are still reported
                results.undefined.append((task, f"{label}: {error}"))
            done += len(rows)
            bar.update(done - bar.n)
    bar.close()
    return results


def _measure_rows(
    certified: "Certified",
    dataset: "TwoAFC | TwoAFCTable",
    perturb: str,
    size: int | None,
    rows: range,
    device: "torch.device",
    progress: Callable[[int], Any],
) -> "Measurements":
    from rlpips.evaluation.certify_measurement import measure_certified
    from rlpips.evaluation.result_cache import Measurements

    triplets = measure_certified(
        certified, dataset, perturb, size=size, rows=rows, device=device, progress=progress
    )
    return Measurements(vars(triplets))


def _joined(parts: "Sequence[Mapping[str, Array]]") -> "CertifiedTriplets":
    import numpy as np

    from rlpips.evaluation.certify_measurement import CertifiedTriplets

    return CertifiedTriplets(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _report(options: argparse.Namespace, results: _Results) -> None:
    """Write the JSON if it was asked for, and print the table, even if the JSON cannot be written."""
    from rlpips.evaluation.report_json import report_header

    columns = ["natural", "smoothed", "abstained", *options.radius]
    rows = [["metric", "subset", "sigma", "perturb", *(f"{name} [95 %]" for name in columns), "triplets"]]
    records: list[dict[str, Any]] = []
    for task, triplets in results.measured:
        scores = _scores(options, triplets)
        rows.append([*task.values(), *map(_cell, scores.values()), str(len(triplets.radius))])
        natural, smoothed, abstained, *certified = [vars(score) for score in scores.values()]
        named: dict[str, Any] = {"natural": natural, "smoothed": smoothed, "abstained": abstained}
        named["certified"] = dict(zip(options.radius, certified, strict=True))
        named["largest_radius"] = results.largest_radius[task["sigma"]]
        values = {name: column.tolist() for name, column in vars(triplets).items()}
        records.append({**task, **named, **values})
    for task, problem in results.undefined:
        rows.append([*task.values(), *[UNDEFINED for _ in columns], "-"])
        names = ("natural", "smoothed", "abstained", "certified")
        records.append({**task, **dict.fromkeys(names), "problem": problem})
    try:
        if options.output is not None:
            own = {name: getattr(options, name) for name in ("sigma", "n", "alpha", "radius")}
            header = report_header(options.seed, results.digests, settings(options) | own)
            write_json(options.output, {**header, "results": records})
    finally:
        print("\n".join([*aligned(rows), *_limits(options, results)]))


def _scores(options: argparse.Namespace, triplets: "CertifiedTriplets") -> "dict[str, Score]":
    import numpy as np

    from rlpips.evaluation.scores import bootstrap

    shares = {
        "natural": triplets.natural(),
        "smoothed": triplets.certified(),
        "abstained": np.asarray(triplets.radius == 0, dtype=np.float64),
        **{text: triplets.certified(float(Fraction(text))) for text in options.radius},
    }
    return {name: bootstrap(np.mean, share, seed=options.seed) for name, share in shares.items()}


def _cell(score: "Score") -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _limits(options: argparse.Namespace, results: _Results) -> list[str]:
    """Say for which sigmas the draws are too few for a radius of the table."""
    furthest = max(Fraction(text) for text in options.radius)
    return [
        f"sigma {sigma}: {options.n} draws certify no radius above {255 * radius:.0f}/255 = {radius:.3f}"
        for sigma, radius in results.largest_radius.items()
        if radius <= furthest
    ]


def _plot(options: argparse.Namespace, results: _Results) -> None:
    """Draw all subsets together."""
    from rlpips.evaluation.certify_figure import certified_curve

    groups: dict[tuple[str, str], list[CertifiedTriplets]] = {}
    for task, triplets in results.measured:
        case = f"sigma {task['sigma']}" + (f" on {task['perturb']}" if len(options.perturb) > 1 else "")
        groups.setdefault((task["metric"], case), []).append(triplets)
    curves: dict[str, dict[str, CertifiedTriplets]] = {}
    for (metric, case), group in groups.items():
        curves.setdefault(metric, {})[case] = _joined([vars(triplets) for triplets in group])
    certified_curve(curves, options.plot, {text: float(Fraction(text)) for text in options.radius})


def _positive_fraction(text: str) -> str:
    """Check a positive number, which may be a fraction such as 36/255."""
    try:
        number = float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number or fraction, such as 36/255")
    return text


def _probability(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a probability between 0 and 1")
    return number
