"""The command `rlpips triplets`."""

import argparse
from pathlib import Path
from typing import Any

from rlpips.cli.options import positive
from rlpips.cli.output import tell


def add_triplets(commands: Any) -> None:
    """Add the command to those of `rlpips`."""
    command = commands.add_parser(
        "triplets",
        help="make a 2AFC data set from a folder of photos",
        description="Make triplets of a folder of photos: a patch, two distorted versions of it, and a label "
        "that says which of the two looks more like the patch. The files are laid out as in BAPPS. Triplets "
        "that exist are kept, so run the same command again to continue after an interruption.",
        epilog="Labels by order are known: the weaker distortion is closer. Labels by panel are what most "
        "metrics say. Neither kind comes from people.",
    )
    command.add_argument("photos", metavar="PHOTOS", type=Path, help="a folder of photos, and its subfolders")
    command.add_argument("out", metavar="OUT", type=Path, help="the data set; writes OUT/2afc/SPLIT/SUBSET")
    command.add_argument(
        "--count", type=positive, default=1000, metavar="N", help="number of triplets (default: 1000)"
    )
    command.add_argument(
        "--size", type=positive, default=64, metavar="N", help="side of the patches in pixels (default: 64)"
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another seed gives other triplets (default: 0)"
    )
    command.add_argument(
        "--split", choices=["train", "val"], default="val", help="name of the split (default: val)"
    )
    command.add_argument(
        "--subset", default="triplets", metavar="NAME", help="name of the subset (default: triplets)"
    )
    command.add_argument(
        "--labels",
        choices=["order", "panel"],
        default="order",
        help="order (default): one distortion at two strengths; panel: two distortions, and metrics vote",
    )
    command.add_argument(
        "--panel",
        nargs="+",
        metavar="NAME",
        help="the metrics that vote: lpips-alex, lpips-vgg, lpips-squeeze, ssim, ms-ssim, mse, psnr, "
        "haarpsi, fsim, gmsd, mdsi, vsi, vif (default: seven of them)",
    )
    command.add_argument(
        "--agree", type=positive, metavar="K", help="metrics that must agree (default: all but one)"
    )
    command.add_argument(
        "--distortions",
        nargs="+",
        metavar="NAME",
        help="distortions to use, by their names in rlpips.data.DISTORTIONS (default: all)",
    )
    command.add_argument(
        "--workers", type=int, default=0, metavar="N", help="additional processes (default: 0)"
    )
    command.set_defaults(run=_triplets)


def _triplets(options: argparse.Namespace) -> int:
    """Make triplets, print what was made, and tell which photos could not be read."""
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
    kept = f", chosen from {made.candidates} candidates" if made.candidates else ""
    print(f"{made.folder}: {options.count} triplets, {made.new} of them new{kept}")
    if made.small:
        photos = "1 photo is" if len(made.small) == 1 else f"{len(made.small)} photos are"
        tell(f"{photos} smaller than {options.size} pixels and not used")
    for problem in made.unreadable.values():
        tell(problem)
    return 1 if made.unreadable else 0
