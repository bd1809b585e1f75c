"""How metrics agree with people, and with LPIPS. `benchmarks.robust` shows both beside robustness."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measured import Folder, Row
from rlpips.backbones.architectures import ARCHITECTURES
from rlpips.evaluation.scores import Array

ROOT = Path(__file__).parents[1]
BATCH = 4  # images of LIVE and mucped23 are large


def with_people(folder: Folder, weights: str, human: Path) -> Row:
    """Return a metric's agreement with people.

    Args:
        folder: where reports are kept.
        weights: the metric.
        human: the folder with `live_r2_subset` and `mucped23`.

    Returns:
        Spearman correlations on LIVE's subset, of all pairs and by type, and the 2AFC score on mucped23. The
        95 % intervals resample references.
    """
    pairs = human / "live_r2_subset" / "pairs.csv"
    live = folder.evaluated("live", weights, "mos", "--data", pairs, "--batch-size", BATCH)
    choices = _choices(folder, human / "mucped23")
    mucped = folder.evaluated("mucped23", weights, "2afc", "--data", choices, "--batch-size", BATCH)
    found = {f"LIVE, {record['type']}": _cell(record["Spearman"]) for record in live["results"]}
    return {**found, "mucped23, 2AFC": _cell(mucped["results"][0]["2AFC"])}


def in_short(people: Row) -> Row:
    """Return what tables of robustness show of people: two numbers without their intervals."""
    columns = {"LIVE, all": "people: LIVE", "mucped23, 2AFC": "mucped23"}
    return {short: str(people[column]).split()[0] for column, short in columns.items() if column in people}


def _choices(folder: Folder, mucped: Path) -> Path:
    """Make the table of forced choices, if it is not there."""
    choices = folder.path / "mucped23.csv"
    if not choices.exists():
        tool = ROOT / "tools" / "mucped23_table.py"
        search = {**os.environ, "PYTHONPATH": str(ROOT)}  # the package may not be installed
        subprocess.run([sys.executable, tool, mucped, choices], check=True, env=search)
    return choices


def _cell(score: dict[str, Any]) -> str:
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def with_lpips(name: str, distances: Array, standard: Array) -> Row:
    """Compare distances of the same pairs with those of LPIPS.

    Args:
        name: what the row calls LPIPS.
        distances: by the metric, `(N,)`.
        standard: by LPIPS of the same net, `(N,)`.
    """
    ranks = [each.argsort().argsort() for each in (distances, standard)]
    return {
        "LPIPS": name,
        "pairs": str(len(distances)),
        "median ratio": float(np.median(distances / standard)),
        "Spearman": f"{np.corrcoef(ranks[0], ranks[1])[0, 1]:.3f}",
    }


def standard_of(weights: str) -> str:
    """Return the name of LPIPS of the net that a metric uses."""
    net, colon, _ = weights.partition(":")
    return f"{net}:standard" if colon and net in (*ARCHITECTURES, "vgg16") else "standard"
