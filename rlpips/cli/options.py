"""Options that several commands share, and how values of options are read."""

import argparse
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlpips._choices import NETS, VERSIONS

ABOUT_DISTANCES = (
    "A distance of 0 means the same image; larger means more different. With the default metric, a photo and "
    "its JPEG of quality 70 are about 0.02 apart (0.03 at quality 40, 0.06 at 20, 0.1 at 10), and two "
    "different photos are about 0.7 apart."
)


def positive(text: str) -> int:
    """Read a positive whole number."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def seed(text: str) -> int:
    """Read a whole number that is not negative."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def image_size(text: str) -> tuple[int, int]:
    """Read 'HEIGHTxWIDTH', or the side of a square."""
    height, _, width = text.lower().partition("x")
    try:
        return positive(height), positive(width or height)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; write 256 or 240x320 (height x width)"
        ) from None


def output_file(text: str) -> Path:
    """Read the path of a file to write; its folder exists."""
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
    """Read the path of a figure to write."""
    path = output_file(text)
    if path.suffix.lower() not in (".png", ".pdf"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png or .pdf")
    return path


def output_folder(text: str) -> Path:
    """Read the path of a folder for files; it exists, or the folder that will hold it does."""
    path = Path(text)
    if not path.is_dir() and (path.exists() or not path.absolute().parent.is_dir()):
        reason = "it is a file" if path.exists() else "its folder does not exist"
        raise argparse.ArgumentTypeError(f"{text!r} cannot be created: {reason}")
    return path


def add_weights_options(command: argparse.ArgumentParser) -> Any:
    """Add the options that name one metric; return their group."""
    group = command.add_argument_group("metric")
    group.add_argument("--net", choices=NETS, default="alex", help="the backbone (default: alex)")
    group.add_argument(
        "--weights",
        default="robust",
        help="'robust' (default), 'standard' (the weights of LPIPS), a name from 'rlpips weights list', "
        "a file, or the folder of a run of 'rlpips train'",
    )
    group.add_argument(
        "--version",
        choices=VERSIONS,
        default="0.1",
        help="the version of LPIPS (default: 0.1); 0.0 needs --weights standard",
    )
    return group


def add_device_option(group: Any) -> None:
    """Add the option that names where to compute; `main` replaces 'auto' with the name of a device."""
    group.add_argument(
        "--device",
        default="auto",
        help="where to compute: cpu, cuda, cuda:1, mps, or auto (default), which takes a GPU if there is one",
    )


def add_metric_options(command: argparse.ArgumentParser) -> Any:
    """Add the options that name one metric, and how it takes images; return their group."""
    group = add_weights_options(command)
    add_device_option(group)
    group.add_argument(
        "--resize",
        type=image_size,
        metavar="HxW",
        help="resize all images to this height and width, such as 240x320, or 256 for 256x256",
    )
    group.add_argument(
        "--tile",
        type=positive,
        metavar="N",
        help="for huge images: run one pair at a time, in tiles of N x N pixels (512 is a good size); the "
        "distances are the same, in less memory",
    )
    return group


def add_output_option(group: Any, kind: Callable[[str], Path], text: str, *, required: bool = False) -> None:
    """Add the option that names the file to write."""
    group.add_argument("-o", dest="output", type=kind, required=required, metavar="FILE", help=text)


def add_plot_option(group: Any, text: str) -> None:
    """Add the option that names a figure to draw."""
    group.add_argument("--plot", type=plot_file, metavar="FILE", help=f"{text}; FILE is a .png or .pdf")
