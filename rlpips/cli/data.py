"""The command `rlpips data`."""

import argparse
from pathlib import Path
from typing import Any


def add_data(commands: Any) -> None:
    """Add the command to those of `rlpips`."""
    command = commands.add_parser(
        "data",
        help="download data sets of human judgements",
        description="Download data sets of human judgements.",
    )
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION")
    action = actions.add_parser(
        "download",
        help="download and unpack a part of BAPPS",
        description="Download and unpack a part of BAPPS, the data set of LPIPS.",
    )
    action.add_argument("name", choices=["bapps-val", "bapps-train", "bapps-jnd"], help="the part")
    action.add_argument("folder", metavar="DIR", type=Path, help="the folder that will hold 2afc/ or jnd/")
    action.set_defaults(run=_download)


def _download(options: argparse.Namespace) -> int:
    from rlpips.data.bapps import download

    print(download(options.name, options.folder))
    return 0
