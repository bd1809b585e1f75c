"""What the modules of the command line share: arguments, metrics, folders of files, tables, complaints."""

import argparse
import importlib
import json
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rlpips
from rlpips.errors import printable

if TYPE_CHECKING:
    import torch

    from rlpips.attacks.metrics import Metric


UNDEFINED = "not defined"  # in tables, for what is null in JSON


def positive(text: str) -> int:
    """Read a positive whole number."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def image_size(text: str) -> tuple[int, int]:
    """Read a height and width, or the side of a square."""
    height, _, width = text.lower().partition("x")
    try:
        return positive(height), positive(width or height)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; write 256 or 240x320 (height x width)"
        ) from None


def output_file(text: str) -> Path:
    """Read the path of a file that is to be written, in a folder that exists."""
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = 0
    except OSError as error:  # such as: the name is too long
        raise argparse.ArgumentTypeError(f"{text!r:.80} cannot be written: {error.strerror}") from None
    if stat.S_ISDIR(mode) or not path.absolute().parent.is_dir():
        reason = "it is a folder" if stat.S_ISDIR(mode) else "its folder does not exist"
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: {reason}")
    return path


def plot_file(text: str) -> Path:
    """Read the path of a figure that is to be written."""
    path = output_file(text)
    if path.suffix.lower() not in (".png", ".pdf"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png or .pdf")
    return path


def output_folder(text: str) -> Path:
    """Read the path of a folder that files are to be written to; its own folder exists."""
    path = Path(text)
    if not path.is_dir() and (path.exists() or not path.absolute().parent.is_dir()):
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be made: {'it is a file' if path.exists() else 'its folder does not exist'}"
        )
    return path


def tell(problem: object, about: str = "") -> None:
    """Print a problem to stderr on one line, with what it is about in front unless it begins so."""
    text = str(problem)
    text = text if text.startswith(about) else f"{about} {text}"
    line = " ".join(part.strip() for part in text.splitlines())
    with suppress(OSError):  # a log that cannot be written does not end the work
        print(f"rlpips: {printable(line, 2000)}", file=sys.stderr)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align rows of text, all columns to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def write_output(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: it cannot be written; the message names it.
    """
    from rlpips.system.files import write_atomically

    try:
        # Names of files may hold what is no text.
        write_atomically(path, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error


def check(options: argparse.Namespace) -> None:
    """Check, before the work, what would fail after it."""
    for text in options.weights:
        if options.weights.count(text) > 1:
            raise ValueError(f"--weights names {text!r} twice")
    if options.plot is not None:
        from rlpips.plots import check_plot_file

        check_plot_file(options.plot)


def add_weights_options(command: argparse.ArgumentParser) -> Any:
    """Add the options that name one metric; return their group."""
    group = command.add_argument_group("metric")
    group.add_argument("--net", choices=["alex", "vgg", "squeeze"], default="alex", help="backbone (alex)")
    group.add_argument(
        "--weights",
        default="robust",
        help="'robust' (the default), 'standard' (LPIPS' own), a name from 'rlpips weights list', a file, or "
        "the folder of a run of 'rlpips train'",
    )
    group.add_argument(
        "--version",
        choices=["0.1", "0.0"],
        default="0.1",
        help="version of LPIPS (0.1); 0.0 goes with --weights standard",
    )
    return group


def add_device_option(group: Any) -> None:
    """Add the option that names where to compute; `main` replaces 'auto' by the device that it means."""
    group.add_argument(
        "--device",
        default="auto",
        help="where to compute: auto (the default: cuda, or mps, or else cpu), cpu, cuda, cuda:1, mps",
    )


def add_metric_options(command: argparse.ArgumentParser) -> Any:
    """Add the options that name one metric, and how images come to it; return their group."""
    group = add_weights_options(command)
    add_device_option(group)
    group.add_argument(
        "--resize", type=image_size, metavar="HxW", help="bring all images to this height and width"
    )
    group.add_argument(
        "--tile",
        type=positive,
        metavar="N",
        help="for huge images: the same distances from tiles of N x N pixels (512 is a good size), in the "
        "memory of one; pairs run one at a time",
    )
    return group


def load_metric(text: str, device: "torch.device") -> tuple["Metric", str | None]:
    """Build the metric that a command line names, and digest its tensors."""
    import torch

    from rlpips.backbones.architectures import ARCHITECTURES
    from rlpips.hub.digests import metric_digest

    head, colon, tail = text.partition(":")
    metric: Any
    if colon and head in (*ARCHITECTURES, "vgg16"):
        metric = rlpips.LPIPS(net=head, weights=tail, check_range=False)
    elif colon and all(name.isidentifier() for name in (*head.split("."), tail)) and not Path(text).exists():
        metric = _call_factory(text, head, tail)
    else:
        metric = rlpips.LPIPS(weights=text, check_range=False)
    if isinstance(metric, torch.nn.Module):
        metric = metric.eval().requires_grad_(False).to(device)
    return metric, metric_digest(metric)


def _call_factory(text: str, module: str, function: str) -> Any:
    """Call the function of a module that returns a metric, of the working folder if nowhere else.

    Raises:
        ValueError: there is no such function, or it fails.
    """
    folder = str(Path.cwd())  # where people keep modules of their own
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    try:
        factory = getattr(importlib.import_module(module), function, None)
        metric = None if factory is None else factory()
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{text!r} names no metric: {reason}") from error
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)
    if factory is None:
        raise ValueError(f"{text!r} names no metric: {module} has no {function}")
    if not callable(metric):
        raise ValueError(f"{text!r} names no metric: it returned {metric!r:.60}, which cannot be called")  # noqa: TRY004
    return metric


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a report's numbers depend on, for its JSON."""
    names = ("data", "images", "subsets", "attack", "perturb", "size", "limit", "batch_size", "device")
    given = {name: value for name, value in vars(options).items() if name in names}
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a report, as strict JSON, with null for what is not defined."""
    from rlpips.evaluation.report_json import finite_or_none

    write_output(path, json.dumps(finite_or_none(document), indent=1, allow_nan=False) + "\n")
