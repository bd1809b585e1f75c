"""What every example is held to."""

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Example = Callable[[random.Random], bool]
SECONDS = 20  # after which an example counts as hanging


@contextmanager
def on_time() -> Iterator[None]:
    def late(*_):
        raise AssertionError(f"took more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def readable(error: Exception, names: str, limit: int = 2000) -> None:
    """Check that the message of an error is one that a person can read, and holds what it is about."""
    text = str(error)
    assert names in text, f"{type(error).__name__} does not name {names}: {text!r}"
    assert len(text) < limit, f"a message of {len(text)} characters"
    assert all(c.isprintable() or c == "\n" for c in text), f"control characters: {text!r}"


def names_it(error: Exception, path: Path) -> None:
    """Check that the message of an error is one that a person can read, and names the file."""
    readable(error, path.name)
