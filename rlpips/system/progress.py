"""The progress of long work: a bar on a terminal and in a notebook, a line now and then in a log."""

import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_EVERY = 30.0  # seconds; the least between two lines in a log


def progress(
    desc: str | None = None,
    *,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    hidden: bool = False,
    leave: bool = True,
    size: bool = False,
) -> "tqdm[Any] | Lines":
    """Show on stderr how far long work is, in a block in which `update` is called with what more is done.

    On a terminal it is the bar of tqdm, in a notebook that of `tqdm.auto`. Elsewhere, as where stderr goes to
    a log, it is a line on stderr at most every 30 s, the first of them after 30 s.

    Args:
        desc: what is done.
        unit: what is counted.
        total: how many there are.
        initial: how many of them were done before.
        hidden: show nothing, as in all processes but the first.
        leave: the bar stays when the work ends.
        size: what is counted are bytes.
    """
    options: dict[str, Any] = {
        "desc": desc,
        "unit": unit,
        "total": total,
        "initial": initial,
        "unit_scale": size,
        "unit_divisor": 1024 if size else 1000,
    }
    if not hidden and _in_notebook():
        from tqdm import TqdmWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmWarning)  # without ipywidgets the bar is of text, and will do
            from tqdm import auto
        return auto.tqdm(**options, leave=leave, file=sys.stderr)
    if not hidden and _on_terminal():
        from tqdm import tqdm

        return tqdm(**options, leave=leave, file=sys.stderr)
    return Lines(**options, hidden=hidden or sys.stderr is None)


def _in_notebook() -> bool:
    """Tell whether this is the kernel of a notebook, by tqdm's rule; its stderr is no terminal."""
    try:
        return "IPKernelApp" in sys.modules["IPython"].get_ipython().config
    except (KeyError, AttributeError):
        return False


def _on_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


class Lines:
    """A line on stderr at most every 30 s, with as much of tqdm's interface as is used."""

    def __init__(
        self, *, desc: str | None, total: float | None, initial: float, hidden: bool, **unit: Any
    ) -> None:
        self.n, self.total = initial, total
        self._desc, self._initial, self._hidden, self._unit = desc, initial, hidden, unit
        self._values = ""
        self._start = self._told = time.monotonic()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End; a line that was written stays."""

    def set_description(self, desc: str) -> None:
        """Say what is being done now."""
        self._desc = desc

    def set_postfix(self, values: Mapping[str, str]) -> None:
        """Show some values beside the progress."""
        self._values = ", ".join(f"{name}={value}" for name, value in values.items())

    def update(self, n: float = 1) -> None:
        """Note that this much more is done."""
        self.n += n
        now = time.monotonic()
        if self._hidden or now - self._told < LINE_EVERY:
            return
        self._told = now
        from tqdm import tqdm

        line = tqdm.format_meter(
            self.n, self.total, now - self._start, ncols=0, prefix=self._desc or "", initial=self._initial,  # type: ignore[arg-type]  # None will do
            postfix=self._values or None, **self._unit,
        )  # fmt: skip
        with suppress(OSError, ValueError):  # a log that cannot be written does not end the work
            sys.stderr.write(f"rlpips: {line}\n")
            sys.stderr.flush()
