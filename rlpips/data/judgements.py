"""Human judgements of image similarity on disk: BAPPS (Zhang et al. 2018), and data sets with its layout.

A data set is a folder ROOT that holds

    ROOT/2afc/SPLIT/SUBSET/{ref,p0,p1}/STEM.png    a reference and two distorted versions of it
    ROOT/2afc/SPLIT/SUBSET/judge/STEM.npy          the share of people who found p1 more similar to ref
    ROOT/jnd/val/SUBSET/{p0,p1}/STEM.png           two images
    ROOT/jnd/val/SUBSET/same/STEM.npy              the share of people who saw no difference

SPLIT is 'train' or 'val'. The files of one example have the same STEM. A share is an array of one value in
[0, 1].
"""

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from rlpips.errors import DatasetError, is_system_error, printable
from rlpips.images import to_tensor

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm")


@dataclass(frozen=True)
class Layout:
    """The folders of one kind of judgement: `ROOT/TOP/SPLIT/SUBSET/{images and share}`."""

    top: str
    splits: tuple[str, ...]
    images: tuple[str, ...]
    share: str


@dataclass(frozen=True)
class _Subset:
    """The files of one subset."""

    name: str
    folder: Path
    stems: tuple[str, ...]
    suffixes: dict[str, dict[str, str]]  # by folder and stem, for images that do not end in .png


class _Judgements(Dataset[dict[str, Any]]):
    """What `TwoAFC` and `JND` share: they list the files at once and read an example when it is asked for."""

    layout: ClassVar[Layout]

    def __init__(self, root: str | PathLike[str], subsets: str | Sequence[str] | None = None) -> None:
        self.root = Path(root)
        top = self.root / self.layout.top
        if not top.is_dir():
            raise DatasetError(
                f"{top}: there is no such folder; "
                f"a data set holds {self.layout.top}/{self.layout.splits[-1]}/SUBSET"
            )
        if subsets is None:
            names = [f"val/{path.name}" for path in list_visible(top / "val") if path.is_dir()]
            if not names:
                raise DatasetError(f"{top / 'val'}: there are no subsets")
        else:
            names = [subsets] if isinstance(subsets, str) else list(subsets)
            if not names:
                raise ValueError("subsets is empty; None takes all subsets under val")
        self._subsets = [self._list_subset(name) for name in dict.fromkeys(names)]
        self.subsets = tuple(subset.name for subset in self._subsets)
        self._ends = list(accumulate(len(subset.stems) for subset in self._subsets))

    def _list_subset(self, name: str) -> _Subset:
        """List the files of a subset and check that each example has all of its files."""
        layout = self.layout
        split, _, own = name.partition("/")
        if split not in layout.splits or not own or own.startswith(".") or "/" in own or "\\" in own:
            splits = " or ".join(repr(f"{split}/SUBSET") for split in layout.splits)
            raise ValueError(f"{name!r} does not name a subset; write {splits}")
        folder = self.root / layout.top / split / own
        if not folder.is_dir():
            beside = [path.name for path in list_visible(folder.parent) if path.is_dir()]
            raise DatasetError(
                f"{folder}: there is no such folder" + (f"; there are {', '.join(beside)}" if beside else "")
            )
        files = {kind: _list_stems(folder / kind, _IMAGE_SUFFIXES) for kind in layout.images}
        files[layout.share] = _list_stems(folder / layout.share, (".npy",))
        first = layout.images[0]
        for kind in (*layout.images[1:], layout.share):
            for a, b in ((first, kind), (kind, first)):
                lacking = sorted(files[a].keys() - files[b].keys())
                if lacking:
                    raise DatasetError(
                        f"{folder}: {a} holds {len(files[a])} files and {b} {len(files[b])}; "
                        f"{a}/{lacking[0]}{files[a][lacking[0]]} has no partner in {b}"
                    )
        if not files[first]:
            raise DatasetError(f"{folder}: the subset is empty")
        unusual = {
            kind: {stem: suffix for stem, suffix in files[kind].items() if suffix != ".png"}
            for kind in layout.images
        }
        return _Subset(name, folder, tuple(sorted(files[first])), unusual)

    def __len__(self) -> int:
        return self._ends[-1]

    def __repr__(self) -> str:
        held = ", ".join(f"{subset.name}: {len(subset.stems)}" for subset in self._subsets)
        return f"{type(self).__name__}({str(self.root)!r}, {len(self)} examples: {held})"

    def _find(self, index: int) -> tuple[_Subset, str]:
        """Return the subset and the stem of an example."""
        index = range(len(self))[index]
        k = bisect_right(self._ends, index)
        subset = self._subsets[k]
        return subset, subset.stems[index - self._ends[k] + len(subset.stems)]

    def subset_of(self, index: int) -> str:
        """Return the name of the subset that holds an example, such as 'val/traditional'."""
        return self._find(index)[0].name

    def name_of(self, index: int) -> str:
        """Return an example's full name, such as 'val/traditional/000123'."""
        subset, stem = self._find(index)
        return f"{subset.name}/{stem}"

    def group_of(self, index: int) -> str:
        """Return the group of an example, which intervals resample as a whole: here the example alone."""
        return self.name_of(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        subset, stem = self._find(index)
        item: dict[str, Any] = {}
        for kind in self.layout.images:
            path = subset.folder / kind / (stem + subset.suffixes[kind].get(stem, ".png"))
            item[kind] = to_tensor(path)[0][0]
        shapes = {kind: tuple(item[kind].shape[1:]) for kind in self.layout.images}
        if len(set(shapes.values())) > 1:
            found = ", ".join(f"{kind} {height} x {width}" for kind, (height, width) in shapes.items())
            raise DatasetError(
                f"{self.name_of(index)}: the images differ in size: {found} pixels (height x width)"
            )
        item[self.layout.share] = _read_share(subset.folder / self.layout.share / f"{stem}.npy")
        item["index"] = index
        return item


class TwoAFC(_Judgements):
    """Two alternatives, forced choice: which of two distorted images is more similar to the reference?

    An item is a dict of `ref`, `p0` and `p1`, float32 `(3, H, W)` in [-1, 1]; `judge`, float32 `(1, 1, 1)`,
    the share of people who chose `p1`, in [0, 1]; and `index`, the item's position, an int. The loader of
    `lpips` gives the same. The folders are listed at once. Files are read and checked when an item is taken.

    Args:
        root: the folder that holds `2afc`.
        subsets: names such as 'val/traditional' or 'train/cnn'; None takes all subsets under val.

    Attributes:
        root: the folder, a `Path`.
        subsets: the names of the subsets, in the order of the items.

    Raises:
        DatasetError: a folder is missing, empty, or holds files that do not belong together. Taking an item
            raises it for a judgement that is not one value in [0, 1] and for images that differ in size.
        ImageError: on taking an item, a file is not an image, or is damaged.
        OSError: on taking an item, the system cannot read a file.
        ValueError: a subset's name is not 'SPLIT/SUBSET'.
    """

    layout = Layout("2afc", splits=("train", "val"), images=("ref", "p0", "p1"), share="judge")


class JND(_Judgements):
    """Just noticeable differences: did people see a difference between two images, shown in turn?

    An item is a dict of `p0` and `p1`, float32 `(3, H, W)` in [-1, 1]; `same`, float32 `(1, 1, 1)`, the share
    of people who saw no difference, in [0, 1]; and `index`, the item's position, an int. The folders are
    listed at once. Files are read and checked when an item is taken.

    Args:
        root: the folder that holds `jnd`.
        subsets: names such as 'val/cnn'; None takes all subsets under val.

    Attributes:
        root: the folder, a `Path`.
        subsets: the names of the subsets, in the order of the items.

    Raises:
        DatasetError: a folder is missing, empty, or holds files that do not belong together. Taking an item
            raises it for a share that is not one value in [0, 1] and for images that differ in size.
        ImageError: on taking an item, a file is not an image, or is damaged.
        OSError: on taking an item, the system cannot read a file.
        ValueError: a subset's name is not 'val/SUBSET'.
    """

    layout = Layout("jnd", splits=("val",), images=("p0", "p1"), share="same")


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make a batch of examples, for PyTorch's `DataLoader`.

    Raises:
        DatasetError: the images differ in size.
    """
    for name, value in examples[0].items():
        shapes = {tuple(each[name].shape) for each in examples} if isinstance(value, Tensor) else {()}
        if len(shapes) > 1:
            raise DatasetError(f"images of one batch must have one size, got {name} of {sorted(shapes)}")
    batch: dict[str, Any] = default_collate(list(examples))
    return batch


def list_visible(folder: Path) -> list[Path]:
    """List a folder by name, without hidden entries; return nothing if it is not a folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _list_stems(folder: Path, suffixes: Sequence[str]) -> dict[str, str]:
    """Map the stems of a folder's files to their suffixes; raise for a file that does not belong there."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder")
    stems: dict[str, str] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 (there may be half a million)
            if suffix.lower() not in suffixes or not entry.is_file():
                raise DatasetError(
                    f"{entry.path}: does not belong here; {folder.name} holds {suffixes[0]} files"
                )
            if stem in stems:
                raise DatasetError(f"{folder}: holds both {stem}{stems[stem]} and {entry.name}")
            stems[stem] = suffix
    return stems


def _read_share(path: Path) -> Tensor:
    """Read a share as float32 `(1, 1, 1)`."""
    try:
        with path.open("rb") as file:
            value = np.load(file, allow_pickle=False)
    except Exception as error:  # damaged bytes make NumPy raise almost anything
        if is_system_error(error):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise DatasetError(f"{path}: not a NumPy array of one value ({printable(str(error))})") from error
    if not isinstance(value, np.ndarray) or value.size != 1:
        shape = value.shape if isinstance(value, np.ndarray) else "an archive"
        raise DatasetError(f"{path}: must hold one value, got {shape}")
    if value.dtype.kind not in "fiu":
        raise DatasetError(f"{path}: must hold a number, got {value.dtype}")
    share = float(value.reshape(()))
    if not 0 <= share <= 1:  # also true of NaN
        raise DatasetError(f"{path}: a share must lie in [0, 1], got {share}")
    return torch.full((1, 1, 1), share)
