"""The command line, `rlpips`. Torch is imported only by the commands that need it."""

import argparse
import csv
import io
import itertools
import json
import logging
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpips._version import __version__
from rlpips.cli.evaluate import add_evaluate
from rlpips.cli.export import add_export
from rlpips.cli.failures import Failure, tell_failures, tell_left_out
from rlpips.cli.heatmap import add_heatmap, draw_sheet
from rlpips.cli.options import (
    add_metric_options,
    columns,
    output_file,
    plot_file,
    positive,
    tell,
    write_output,
)
from rlpips.cli.process import run_command
from rlpips.cli.train import add_train
from rlpips.errors import printable
from rlpips.system.files import descriptor_of

if TYPE_CHECKING:
    from rlpips.hub.registry import WeightsEntry
    from rlpips.scoring.many_pairs import Measured

_EPILOG = (
    "Distances: 0 is the same image, larger is more different; with the default metric a photo is at about \
0.02 from itself as a JPEG of quality 70, 0.03 at 40, 0.06 at 20, 0.1 at 10, and at 0.7 from another photo. \
Exit status: 0 done, 1 something could not be measured or done, 2 wrong usage, 130 interrupted, 143 \
terminated."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""

    def command(options: argparse.Namespace) -> int:
        _parser().parse_args(arguments, options)
        logging.basicConfig(format="rlpips: %(message)s", level=logging.WARNING)
        if getattr(options, "device", None) == "auto":
            from rlpips.system.processes import best_device

            options.device = best_device()  # the one that reports name
        status: int = options.run(options)
        return status

    return run_command(command)


class _Parser(argparse.ArgumentParser):
    """Takes, before and after the name of a command, what goes with all of them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_argument(
            "--traceback",
            action="store_true",
            default=argparse.SUPPRESS,
            help="after an error, show where in the code it came from",
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rlpips", description="Perceptual distances between images (LPIPS, R-LPIPS).", epilog=_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"rlpips {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser("distance", help="the distance between two images", epilog=_EPILOG)
    command.add_argument("a", metavar="A", type=Path, help="an image file")
    command.add_argument("b", metavar="B", type=Path, help="another")
    _add_measuring_options(command)
    command.set_defaults(run=_distance, plot=None)

    command = commands.add_parser(
        "compare",
        help="the distances between files of one name in two folders",
        epilog=_EPILOG,
    )
    command.add_argument("dir0", metavar="DIR0", type=Path, help="a folder of images")
    command.add_argument("dir1", metavar="DIR1", type=Path, help="another, with files of the same names")
    output = _add_measuring_options(command)
    output.add_argument(
        "--plot",
        type=plot_file,
        metavar="FILE",
        help="the most and the least different pairs, with where they differ, as .png or .pdf",
    )
    command.set_defaults(run=_compare)

    command = commands.add_parser(
        "pairs",
        help="the distances between the images of one folder",
        epilog=_EPILOG,
    )
    command.add_argument("dir", metavar="DIR", type=Path, help="a folder of images")
    command.add_argument("--all", action="store_true", help="all pairs, not only consecutive ones by name")
    _add_measuring_options(command)
    command.set_defaults(run=_pairs, plot=None)

    command = commands.add_parser(
        "triplets",
        help="make a 2AFC data set from a folder of photos",
        description="Make triplets (a patch, two distorted versions, which is more alike) in the layout of "
        "BAPPS. What is there is kept, so that the same command continues an interrupted run.",
        epilog="Labels by order are known by construction; labels by a panel are what metrics agree on. "
        "Neither are people's.",
    )
    command.add_argument("photos", metavar="PHOTOS", type=Path, help="a folder of photos, with those in it")
    command.add_argument("out", metavar="OUT", type=Path, help="the data set: makes OUT/2afc/SPLIT/SUBSET")
    command.add_argument("--count", type=positive, default=1000, metavar="N", help="triplets (1000)")
    command.add_argument("--size", type=positive, default=64, metavar="N", help="pixels of a side (64)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="others give other triplets (0)")
    command.add_argument("--split", choices=["train", "val"], default="val", help="(val)")
    command.add_argument("--subset", default="triplets", metavar="NAME", help="(triplets)")
    command.add_argument(
        "--labels",
        choices=["order", "panel"],
        default="order",
        help="order: one distortion at two strengths (the default); panel: two distortions, metrics vote",
    )
    command.add_argument(
        "--panel",
        nargs="+",
        metavar="NAME",
        help="the metrics that vote: lpips-alex, lpips-vgg, lpips-squeeze, ssim, fsim, vsi, gmsd, mdsi, "
        "haarpsi, vif, psnr (by default seven of them)",
    )
    command.add_argument("--agree", type=positive, metavar="K", help="votes that it takes (all but one)")
    command.add_argument(
        "--distortions", nargs="+", metavar="NAME", help="which, of those in rlpips/distortions.py (all)"
    )
    command.add_argument("--workers", type=int, default=0, metavar="N", help="processes beside this one (0)")
    command.set_defaults(run=_triplets)

    add_heatmap(commands)
    add_evaluate(commands)
    add_train(commands)
    add_export(commands)

    data = commands.add_parser("data", help="data sets of human judgements: download")
    actions = data.add_subparsers(title="actions", required=True, metavar="ACTION")
    action = actions.add_parser("download", help="fetch and unpack a part of BAPPS")
    action.add_argument("name", choices=["bapps-val", "bapps-train", "bapps-jnd"])
    action.add_argument("folder", metavar="DIR", type=Path, help="where 2afc/ or jnd/ shall lie")
    action.set_defaults(run=_data_download)

    weights = commands.add_parser("weights", help="the named weights: list, fetch, verify, import")
    actions = weights.add_subparsers(title="actions", required=True, metavar="ACTION")
    action = actions.add_parser("list", help="all names, and which are on this machine")
    action.add_argument("--json", action="store_true", help="everything that is known of them, as JSON")
    action.set_defaults(run=_weights_list)
    action = actions.add_parser("path", help="the file that holds NAME on this machine")
    action.add_argument("name", metavar="NAME")
    action.set_defaults(run=_weights_path)
    action = actions.add_parser("download", help="fetch what is not on this machine")
    action.add_argument("names", metavar="NAME", nargs="+")
    action.set_defaults(run=_weights_download)
    action = actions.add_parser("verify", help="check digests (of all that is on this machine)")
    action.add_argument("names", metavar="NAME", nargs="*")
    action.set_defaults(run=_weights_verify)
    action = actions.add_parser("import", help="take a copy of NAME from a file brought by hand")
    action.add_argument("name", metavar="NAME")
    action.add_argument("file", metavar="FILE", type=Path)
    action.set_defaults(run=_weights_import)
    return parser


def _add_measuring_options(command: argparse.ArgumentParser) -> Any:
    """Add the options of commands that measure files; return the group of those for output."""
    group = add_metric_options(command)
    group.add_argument(
        "--batch-size", type=positive, metavar="N", help="pairs at once (16), or of all pairs images (64)"
    )
    group = command.add_argument_group("output")
    formats = group.add_mutually_exclusive_group()
    formats.add_argument("--csv", dest="format", action="store_const", const="csv", help="as CSV")
    formats.add_argument("--json", dest="format", action="store_const", const="json", help="as JSON")
    group.add_argument(
        "-o",
        dest="output",
        type=output_file,
        metavar="FILE",
        help="write to FILE, whole or not at all; .csv and .json choose the format",
    )
    return group


def _distance(options: argparse.Namespace) -> int:
    return _measure(options, [(options.a, options.b)], [], [])


def _compare(options: argparse.Namespace) -> int:
    if options.plot is not None:
        from rlpips.plots import check_plot_file

        check_plot_file(options.plot)
    from rlpips.images import may_be_image
    from rlpips.scoring.folders import partners

    pairs, alone = partners(options.dir0, options.dir1)
    measured: list[tuple[Path, Path]] = []
    failures: list[Failure] = []
    left_out: list[Path] = []
    for pair in pairs:
        if any(map(may_be_image, pair)):  # one is enough for the other to be missed
            measured.append(pair)
        else:
            left_out += pair
    for path, problem in alone:
        if may_be_image(path):
            failures.append(Failure(path, problem))
        else:
            left_out.append(path)
    for folder in (options.dir0, options.dir1):
        failures += [
            Failure(path, "is a folder in a folder, whose files are not compared")
            for path in sorted(folder.iterdir())
            if path.is_dir() and not path.name.startswith(".")
        ]
    return _measure(options, measured, failures, left_out)


def _pairs(options: argparse.Namespace) -> int:
    from rlpips.images import may_be_image
    from rlpips.scoring.folders import visible_files

    found = visible_files(options.dir)
    images: list[Path] = []
    left_out: list[Path] = []
    for path in found:
        (images if may_be_image(path) else left_out).append(path)
    if options.all:
        # images in tiles have no embeddings
        combined = images if options.tile is None else ()
        return _measure(options, list(itertools.combinations(images, 2)), [], left_out, combined)
    return _measure(options, list(itertools.pairwise(images)), [], left_out)


def _measure(
    options: argparse.Namespace,
    pairs: Sequence[tuple[Path, Path]],
    failures: list[Failure],
    left_out: Sequence[Path],
    combined: Sequence[Path] = (),
) -> int:
    """Measure pairs, or all of the files `combined`, write the report, name what could not be measured."""
    results: list[Measured] = []
    unreadable: dict[Path, str] = {}
    if pairs:
        import torch

        from rlpips.scoring.many_pairs import measure_all, measure_pairs
        from rlpips.scoring.metric_cache import cached_metric
        from rlpips.system.progress import progress

        metric = cached_metric(options.net, options.weights, options.version, torch.device(options.device))
        given: dict[str, Any] = {"resize": options.resize}
        if options.batch_size is not None:
            given["batch_size"] = options.batch_size
        with progress(total=len(pairs), unit="pair", leave=False) as bar:
            if combined:
                measuring = measure_all(combined, metric, progress=bar.update, **given)
            else:
                measuring = measure_pairs(pairs, metric, tile=options.tile, **given)
            for result in measuring:
                if not combined:
                    bar.update()
                unreadable |= result.unreadable
                if result.problem:
                    failures.append(Failure(result.a, result.problem, result.b))
                elif not result.unreadable:
                    results.append(result)
        failures += [Failure(path, problem) for path, problem in unreadable.items()]
    elif not failures:
        tell_left_out(left_out)
        raise ValueError("there are no two images to compare")
    _report(options, results, failures, left_out)
    tell_failures(failures)
    tell_left_out(left_out)
    if options.plot is not None:
        draw_sheet(options, results)
    return 1 if failures else 0


def _report(
    options: argparse.Namespace, results: list["Measured"], failures: list[Failure], left_out: Sequence[Path]
) -> None:
    """Write what was measured to stdout, or to the output file with a summary on stdout."""
    suffix = options.output.suffix.lower() if options.output else ""
    kind = options.format or {".csv": "csv", ".json": "json"}.get(suffix, "table")
    if kind == "csv":
        text = _csv(results)
    elif kind == "json":
        text = _json(options, results, failures, left_out)
    else:
        text = _table(options, results)
    if options.output is None:
        sys.stdout.write(text)
        return
    write_output(options.output, text)
    if options.run is not _distance and descriptor_of(options.output) != 1:  # not into the table there
        print(_summary_line(results))


def _summary(results: list["Measured"]) -> dict[str, float | None]:
    """Return the mean distance, its standard error and the median, None where they are not defined."""
    values = [result.distance for result in results]
    return {
        "mean": statistics.fmean(values) if values else None,
        "standard_error": statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None,
        "median": statistics.median(values) if values else None,
    }


def _summary_line(results: list["Measured"]) -> str:
    count = f"{len(results)} pair{'s' if len(results) != 1 else ''}"
    numbers = _summary(results).items()
    return ", ".join([count, *(f"{name.replace('_', ' ')} {n:.4f}" for name, n in numbers if n is not None)])


def _table(options: argparse.Namespace, results: list["Measured"]) -> str:
    if options.run is _distance:
        return "".join(f"{result.distance:.4f}\n" for result in results)
    if options.run is _compare:
        rows = [(printable(result.a.name), f"{result.distance:.4f}") for result in results]
    else:
        rows = [
            (f"{printable(result.a.name)}  {printable(result.b.name)}", f"{result.distance:.4f}")
            for result in results
        ]
    return "\n".join([*columns(rows), _summary_line(results)]) + "\n"


def _csv(results: list["Measured"]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["a", "b", "distance"])
    writer.writerows([result.a, result.b, f"{result.distance:.9g}"] for result in results)
    return text.getvalue()


def _json(
    options: argparse.Namespace, results: list["Measured"], failures: list[Failure], left_out: Sequence[Path]
) -> str:
    document = {
        "rlpips": __version__,
        "net": options.net,
        "weights": options.weights,
        "version": options.version,
        "resize": options.resize,
        "device": options.device,
        **_summary(results),
        "pairs": [{"a": str(r.a), "b": str(r.b), "distance": r.distance} for r in results],
        "failed": [failure.to_json() for failure in failures],
        "left_out": [str(path) for path in left_out],
    }
    return json.dumps(document, indent=2) + "\n"


def _triplets(options: argparse.Namespace) -> int:
    """Make triplets, say what was made, name the photos that could not be read."""
    from rlpips.data.triplets import make_triplets

    made = make_triplets(
        options.photos,
        options.out,
        count=options.count,
        size=options.size,
        seed=options.seed,
        split=options.split,
        subset=options.subset,
        labels=options.labels,
        panel=options.panel,
        agree=options.agree,
        distortions=options.distortions,
        workers=options.workers,
    )
    kept = f", kept of {made.candidates} candidates" if made.candidates else ""
    print(f"{made.folder}: {options.count} triplets, {made.new} of them new{kept}")
    if made.small:
        photos = "1 photo is" if len(made.small) == 1 else f"{len(made.small)} photos are"
        tell(f"{photos} smaller than {options.size} pixels and not used")
    for problem in made.unreadable.values():
        tell(problem)
    return 1 if made.unreadable else 0


def _data_download(options: argparse.Namespace) -> int:
    from rlpips.data.bapps import download

    print(download(options.name, options.folder))
    return 0


def _weights_list(options: argparse.Namespace) -> int:
    from rlpips.hub import registry

    if options.json:
        entries = [vars(entry) for entry in registry.list_weights().values()]
        print(json.dumps(entries, indent=2))
        return 0
    from rlpips.hub import store

    rows = [("name", "kind", "net", "on this machine", "trained")]
    for entry in registry.list_weights().values():
        path = store.path_of(entry)
        where = "no" if not path.exists() else str(path) if entry.urls else "ships with rlpips"
        rows.append((entry.name, entry.kind, entry.net, where, _trained(entry)))
    print("\n".join(columns(rows)))
    return 0


def _trained(entry: "WeightsEntry") -> str:
    recipe: dict[str, Any] = entry.recipe
    if recipe.get("mode") == "adversarial":
        what = {"heads": "heads", "all": "whole network"}[recipe["train"]]
        return f"{what}, adversarially, {recipe['attack']} on {recipe['perturb']}"
    return f"on {recipe['data']}"


def _weights_path(options: argparse.Namespace) -> int:
    from rlpips.hub import store
    from rlpips.hub.registry import entry

    path = store.path_of(entry(options.name))
    if not path.exists():
        raise FileNotFoundError(
            f"{options.name} is not on this machine; it would become {path}. "
            f"Fetch it with: rlpips weights download {options.name}"
        )
    print(path)
    return 0


def _weights_download(options: argparse.Namespace) -> int:
    from rlpips.hub import store

    def download(entry: "WeightsEntry") -> str:
        path = store.ensure(entry)
        store.verify(entry)
        return str(path)

    return _for_each(options.names, download)


def _weights_verify(options: argparse.Namespace) -> int:
    from rlpips.hub import registry, store

    def verify(entry: "WeightsEntry") -> str:
        store.verify(entry)
        return f"{entry.name}: right"

    names = options.names or [
        name for name, entry in registry.list_weights().items() if store.path_of(entry).exists()
    ]
    return _for_each(names, verify)


def _weights_import(options: argparse.Namespace) -> int:
    from rlpips.hub import store

    return _for_each([options.name], lambda entry: str(store.import_file(entry, options.file)))


def _for_each(names: Iterable[str], action: Callable[["WeightsEntry"], str]) -> int:
    """Print what `action` returns for each named checkpoint; one that fails does not stop the rest."""
    from rlpips.hub.registry import entry

    status = 0
    for checked in [entry(name) for name in names]:
        try:
            done = action(checked)
        except (OSError, ValueError, RuntimeError) as error:
            tell(f"error: {error}")
            status = 1
            continue
        print(done, flush=True)
    return status
