"""What `rlpips` measured, kept in a folder so that nothing is measured twice, and tables of it."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rlpips.cli import main as run_command_line
from rlpips.cli.metrics import load_metric
from rlpips.evaluation.pictures import file_names
from rlpips.hub.digests import metric_digest

Row = dict[str, float | str]


class Folder:
    """A folder of reports, each made once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def report_file(self, name: str, weights: str) -> Path:
        """Name the file of a report on a metric. Other weights under the same name get another file."""
        metric = file_names([weights])[weights]
        return self.path / f"{name}-{metric}{_digest(weights)}.json"

    def evaluated(self, name: str, weights: str, *command: object) -> dict[str, Any]:
        """Return the report of `rlpips evaluate` on a metric."""
        output = self.report_file(name, weights)
        if not output.exists():
            run("evaluate", *command, "--weights", weights, "-o", output)
        document: dict[str, Any] = json.loads(output.read_text())
        return document


def run(*arguments: object) -> None:
    """Run `rlpips`, and stop where it fails."""
    print("+ rlpips", *arguments, flush=True)
    if status := run_command_line([str(each) for each in arguments]):
        raise SystemExit(status)


@cache
def _digest(weights: str) -> str:
    digest = metric_digest(load_metric(weights, torch.device("cpu")))
    return "" if digest is None else f"-{digest.removeprefix('sha256:')[:8]}"


def table(title: str, rows: Mapping[str, Row]) -> str:
    """Write a Markdown table of rows by name, with a gap for what was not measured."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"| {title} | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for name, row in rows.items():
        cells = [row.get(column, "") for column in columns]
        shown = [cell if isinstance(cell, str) else f"{cell:.2f}" for cell in cells]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def transposed(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Exchange rows and columns."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: {key: row[name] for key, row in rows.items() if name in row} for name in names}
