"""Progress of long work: a bar on a terminal and in a notebook, a line now and then in a log."""

import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_EVERY = 30.0  # seconds between two lines in a log, at least


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
    """Return a context manager that shows on stderr how far the work is; call its `update` as work is done.

    On a terminal it is tqdm's bar, in a notebook the bar of `tqdm.auto`. Elsewhere, for example if stderr
    goes to a log, it is one line at most every 30 s. The first line comes after 30 s.

    Args:
        desc: what is done.
        unit: what is counted.
        total: how many there are.
        initial: how many of them are already done.
        hidden: show nothing, for example in all processes but the first.
        leave: keep the bar when the work ends.
        size: the unit is bytes.
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
            warnings.simplefilter("ignore", TqdmWarning)  # without ipywidgets the bar is text, and will do
            from tqdm import auto
        return auto.tqdm(**options, leave=leave, file=sys.stderr)
    if not hidden and _on_terminal():
        from tqdm import tqdm

        return tqdm(**options, leave=leave, file=sys.stderr)
    return Lines(**options, hidden=hidden or sys.stderr is None)


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, by tqdm's rule; its stderr is not a terminal."""
    try:
        return "IPKernelApp" in sys.modules["IPython"].get_ipython().config
    except (KeyError, AttributeError):
        return False


def _on_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # stderr is missing or closed
        return False


class Lines:
    """A line on stderr at most every 30 s, with the methods of tqdm that the package uses."""

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
        """Do nothing: lines that were written stay."""

    def set_description(self, desc: str) -> None:
        """Set what is done now."""
        self._desc = desc

    def set_postfix(self, values: Mapping[str, str]) -> None:
        """Set values that are shown after the progress."""
        self._values = ", ".join(f"{name}={value}" for name, value in values.items())

    def update(self, n: float = 1) -> None:
        """Count this much more as done."""
        self.n += n
        now = time.monotonic()
        if self._hidden or now - self._told < LINE_EVERY:
            return
        self._told = now
        from tqdm import tqdm

        line = tqdm.format_meter(
            self.n, self.total, now - self._start, ncols=0, prefix=self._desc or "", initial=self._initial,  # type: ignore[arg-type]  # None is allowed
            postfix=self._values or None, **self._unit,
        )  # fmt: skip
        with suppress(OSError, ValueError):  # the work goes on if the log cannot be written
            sys.stderr.write(f"rlpips: {line}\n")
            sys.stderr.flush()
