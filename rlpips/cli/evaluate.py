"""The command `rlpips evaluate`: a module for each report."""

from typing import Any

from rlpips.cli.evaluate_2afc import add_2afc
from rlpips.cli.evaluate_certified import add_certified
from rlpips.cli.evaluate_jnd import add_jnd
from rlpips.cli.evaluate_mos import add_mos
from rlpips.cli.evaluate_robustness import add_robustness


def add_evaluate(commands: Any) -> None:
    """Add the command and its reports to those of `rlpips`."""
    command = commands.add_parser(
        "evaluate",
        help="score metrics against people's answers and under attack",
        description="Score metrics against people's answers, with and without attacks.",
    )
    reports = command.add_subparsers(title="reports", required=True, metavar="REPORT")
    for add_report in (add_2afc, add_jnd, add_mos, add_robustness, add_certified):
        add_report(reports)
