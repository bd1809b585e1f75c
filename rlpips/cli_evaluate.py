"""The command `rlpips evaluate`: reports on metrics, as a table, as JSON with every number, resumable."""

import argparse
import hashlib
import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rlpips
from rlpips.cli_parts import columns, files, output_file, positive, write_output

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rlpips.evaluation import Score
    from rlpips.objectives import Metric
    from rlpips.robustness import RobustnessReport

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
    group = report.add_argument_group("output")
    group.add_argument("-o", dest="output", type=output_file, metavar="FILE", help="every number, as JSON")
    group.add_argument("--plot", type=_plot_file, metavar="FILE", help="histograms, as .png or .pdf")
    group.add_argument("--save-images", type=Path, metavar="DIR", help="the worst examples, as PNG files")
    report.set_defaults(run=_robustness)


def _add_metric_options(report: argparse.ArgumentParser, batch_size: int) -> None:
    report.add_argument(
        "--weights",
        nargs="+",
        default=["standard"],
        metavar="METRIC",
        help="weights as for 'rlpips distance', after another net's name and a colon (vgg:standard), or "
        "MODULE:FUNCTION of a Python module, which returns a metric (standard)",
    )
    report.add_argument("--device", default="cpu", help="where to compute (cpu)")
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
    report.add_argument(
        "-o",
        dest="output",
        type=output_file,
        metavar="FILE",
        help="write every number to FILE, as JSON; run again, an interrupted report goes on where it stopped",
    )


def _attack(text: str) -> str:
    """Check an attack while the command line is read, so that a wrong one is wrong usage."""
    from rlpips.attacks import parse_attack

    try:
        parse_attack(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _attack_on_images(text: str) -> str:
    """Check an attack that has no triplets."""
    from rlpips.attacks import SSA, parse_attack

    if isinstance(parse_attack(_attack(text)), SSA):
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


def _check_twice(weights: list[str]) -> None:
    for text in weights:
        if weights.count(text) > 1:
            raise ValueError(f"--weights names {text!r} twice")


def _load_metric(text: str, device: "torch.device") -> tuple["Metric", str | None]:
    """Build the metric that a command line names, and digest its tensors."""
    import torch

    from rlpips.backbones import ARCHITECTURES
    from rlpips.checkpoints import tensors_digest

    head, colon, tail = text.partition(":")
    metric: Any
    if colon and head in ARCHITECTURES:
        metric = rlpips.LPIPS(net=head, weights=tail, check_range=False)
    elif colon and not Path(text).exists():
        sys.path.insert(0, str(Path.cwd()))  # where people keep modules of their own
        try:
            metric = getattr(importlib.import_module(head), tail)()
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{text!r} names no metric: {error}") from error
    else:
        metric = rlpips.LPIPS(weights=text, check_range=False)
    if not isinstance(metric, torch.nn.Module):
        return metric, None
    metric = metric.eval().requires_grad_(False).to(device)
    return metric, tensors_digest(metric.state_dict())


@contextmanager
def _processes(device: str) -> Iterator[tuple[int, "torch.device"]]:
    """Join the group that `torchrun` started, if it did; yield the rank and this process's device."""
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, torch.device(device)
        return
    on_gpus = device.startswith("cuda")
    local = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpus else torch.device(device)
    if on_gpus:
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("nccl" if on_gpus else "gloo")
    try:
        yield torch.distributed.get_rank(), local
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


class _Parts:
    """What an interrupted run has measured, in a folder beside the report."""

    def __init__(self, output: Path | None) -> None:
        self.folder = output.with_name(output.name + ".parts") if output else None

    def _path(self, task: dict[str, Any]) -> Path | None:
        name = hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"{name}.npz" if self.folder else None

    def load(self, task: dict[str, Any]) -> "list[np.ndarray[Any, Any]] | None":
        """Return the columns of numbers of a task that is done."""
        import numpy as np

        path = self._path(task)
        if path is None or not path.exists():
            return None
        with np.load(path) as columns:
            return [columns[name] for name in columns.files]

    def save(self, task: dict[str, Any], columns: Any) -> None:
        """Keep the columns of a task."""
        import io

        import numpy as np

        from rlpips.files import write_atomically

        if (path := self._path(task)) is not None:
            path.parent.mkdir(exist_ok=True)
            buffer = io.BytesIO()
            np.savez(buffer, *columns)
            write_atomically(path, buffer.getvalue())

    def remove(self) -> None:
        """Forget everything, once the report is written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _two_afc(options: argparse.Namespace) -> int:
    from rlpips.attacks import parse_attack
    from rlpips.datasets import TwoAFC
    from rlpips.evaluation import accuracy, bootstrap, mean_of, measure_2afc, two_afc_score

    attacks = {text: parse_attack(text, seed=options.seed) for text in options.attack}
    cases = [("none", "-")] + [(attack, perturb) for attack in attacks for perturb in options.perturb]
    for text in attacks:
        if text.startswith("ssa") and not {"x0", "x1"} >= set(options.perturb):
            raise ValueError(f"{text}: ssa attacks x0 or x1, not {', '.join(options.perturb)}")

    def measure(metric: "Metric", task: dict[str, Any], device: "torch.device", progress: Any) -> Any:
        return measure_2afc(
            metric,
            TwoAFC(options.data, [task["subset"]]),
            attacks.get(task["attack"]),
            task["perturb"] if task["attack"] in attacks else "x0",
            batch_size=options.batch_size,
            device=device,
            limit=options.limit,
            progress=progress,
        )

    def scores(columns: Any) -> "dict[str, Score]":
        return {
            "2AFC": bootstrap(mean_of(two_afc_score), *columns, seed=options.seed),
            "accuracy": bootstrap(mean_of(accuracy), *columns, seed=options.seed),
        }

    dataset = TwoAFC(options.data, options.subsets)
    return _run(options, dataset, cases, measure, scores, ("d0", "d1", "judge"))


def _jnd(options: argparse.Namespace) -> int:
    from rlpips.datasets import JND
    from rlpips.evaluation import bootstrap, jnd_score, measure_jnd

    def measure(metric: "Metric", task: dict[str, Any], device: "torch.device", progress: Any) -> Any:
        dataset = JND(options.data, [task["subset"]])
        sizes = {"batch_size": options.batch_size, "limit": options.limit}
        return measure_jnd(metric, dataset, device=device, progress=progress, **sizes)

    def scores(columns: Any) -> "dict[str, Score]":
        return {"mAP": bootstrap(jnd_score, *columns, seed=options.seed)}

    dataset = JND(options.data, options.subsets)
    return _run(options, dataset, [("none", "-")], measure, scores, ("d", "same"))


def _run(
    options: argparse.Namespace,
    dataset: Any,
    cases: list[tuple[str, str]],
    measure: Callable[["Metric", dict[str, Any], "torch.device", Any], Any],
    scores: Callable[[Any], "dict[str, Score]"],
    names: tuple[str, ...],
) -> int:
    """Measure every metric on every subset in every case, and report."""
    _check_twice(options.weights)
    import torch
    from tqdm import tqdm

    sizes: dict[str, int] = {}
    for i in range(len(dataset)):
        sizes[dataset.subset_of(i)] = sizes.get(dataset.subset_of(i), 0) + 1
    counts = {subset: min(size, options.limit or size) for subset, size in sizes.items()}
    parts = _Parts(options.output)
    results = []
    digests = {}
    with _processes(options.device) as (rank, device):
        total = sum(counts.values()) * len(cases) * len(options.weights)
        bar = tqdm(total=total, unit="example", disable=None if rank == 0 else True, leave=False)
        for label in options.weights:
            metric, digests[label] = _load_metric(label, device)
            tasks = [
                {"metric": label, "subset": subset, "attack": attack, "perturb": perturb}
                for subset in counts
                for attack, perturb in cases
            ]
            run = {"digest": digests[label], "data": str(options.data.resolve()), "seed": options.seed}
            done = [parts.load({**task, **run, "count": counts[task["subset"]]}) for task in tasks]
            if torch.distributed.is_initialized():
                torch.distributed.barrier()  # all look before anyone writes
            for task, columns in zip(tasks, done, strict=True):
                bar.set_description(f"{label} {task['subset']} {task['attack']} {task['perturb']}")
                if columns is None:
                    columns = measure(metric, task, device, bar.update)
                    if rank == 0:
                        parts.save({**task, **run, "count": counts[task["subset"]]}, columns)
                else:
                    bar.update(counts[task["subset"]])
                results.append((task, columns))
        bar.close()
    if rank == 0:
        _report(options, results, scores, digests, names)
        parts.remove()
    return 0


def _report(
    options: argparse.Namespace,
    results: list[tuple[dict[str, Any], Any]],
    scores: Callable[[Any], "dict[str, Score]"],
    digests: dict[str, str | None],
    names: tuple[str, ...],
) -> None:
    """Print the table, and write the JSON where it was asked for."""
    import torch

    rows: list[list[str]] = []
    records = []
    for task, numbers in results:
        scored = scores(numbers)
        if not rows:
            rows.append([*task, *(f"{name} [95 %]" for name in scored), "examples"])
        cells = [f"{s.value:.3f} [{s.low:.3f}, {s.high:.3f}]" for s in scored.values()]
        rows.append([*task.values(), *cells, str(len(numbers[0]))])
        values = {name: column.tolist() for name, column in zip(names, numbers, strict=True)}
        records.append({**task, **{name: vars(score) for name, score in scored.items()}, **values})
    sys.stdout.write("\n".join(columns(rows)) + "\n")
    if options.output is not None:
        document = {
            "rlpips": rlpips.__version__,
            "torch": torch.__version__,
            "data": str(options.data),
            "seed": options.seed,
            "limit": options.limit,
            "metrics": digests,
            "results": records,
        }
        write_output(options.output, json.dumps(document, indent=1) + "\n")


def _robustness(options: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from rlpips.attacks import parse_attack
    from rlpips.robustness import robustness

    if options.plot is not None:
        from rlpips.plots import check_plot_file, histograms

        check_plot_file(options.plot)
    _check_twice(options.weights)
    images = files(options.images)
    with tqdm(unit="image", disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = robustness(
            {text: _load_metric(text, torch.device(options.device))[0] for text in options.weights},
            images,
            {text: parse_attack(text, seed=options.seed) for text in options.attack},
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
