"""Which files are compared: those of the same name in two folders, or those of one folder with each other."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlpips.images import may_be_image
from rlpips.scoring.failures import Failure
from rlpips.scoring.folders import partners, visible_files


@dataclass(frozen=True)
class FilePairs:
    """Pairs of files to measure, and what else their folders hold.

    Attributes:
        pairs: the pairs, in order.
        failures: files that cannot be compared, such as those without a partner.
        left_out: files that are not images.
        all_of: some images, if `pairs` are all pairs of these; otherwise empty.
    """

    pairs: Sequence[tuple[Path, Path]]
    failures: Sequence[Failure] = ()
    left_out: Sequence[Path] = ()
    all_of: Sequence[Path] = ()


def pairs_by_name(folder0: Path, folder1: Path) -> FilePairs:
    """Pair the images of two folders by file name.

    Images without a partner, and folders in the folders, are failures.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    pairs, alone = partners(folder0, folder1)
    images: list[tuple[Path, Path]] = []
    failures: list[Failure] = []
    left_out: list[Path] = []
    for pair in pairs:
        if any(map(may_be_image, pair)):  # an image's partner must be one, too
            images.append(pair)
        else:
            left_out += pair
    for path, problem in alone:
        if may_be_image(path):
            failures.append(Failure(path, problem))
        else:
            left_out.append(path)
    for folder in (folder0, folder1):
        failures += [
            Failure(path, "is a subfolder, and its files are not compared")
            for path in sorted(folder.iterdir())
            if path.is_dir() and not path.name.startswith(".")
        ]
    return FilePairs(images, failures, left_out)


def consecutive_pairs(folder: Path) -> FilePairs:
    """Pair each image of a folder with the next one by name.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    images, left_out = _images(folder)
    return FilePairs(list(itertools.pairwise(images)), left_out=left_out)


def all_pairs(folder: Path) -> FilePairs:
    """Pair each image of a folder with each other one.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    images, left_out = _images(folder)
    return FilePairs(list(itertools.combinations(images, 2)), left_out=left_out, all_of=images)


def _images(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the images of a folder, and its files that are not images."""
    images: list[Path] = []
    others: list[Path] = []
    for path in visible_files(folder):
        (images if may_be_image(path) else others).append(path)
    return images, others
