"""How tests call `rlpips`, and the images that they call it with."""

import os
from pathlib import Path

import rlpips
from rlpips.cli import main

ROOT = Path(rlpips.__file__).parents[1]
CAT, BLURRED = ROOT / "examples" / "cat.png", ROOT / "examples" / "cat-blurred.png"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(*arguments, capsys):
    """Run a command in this process; return its exit status, stdout and stderr."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def evaluate(*arguments, capsys):
    """Run a report of `rlpips evaluate`, as `run` does."""
    return run("evaluate", *arguments, capsys=capsys)


def expected(a, b, weights, **options):
    """Return the distance that a command should print."""
    return rlpips.distance(a, b, weights=weights, **options)
