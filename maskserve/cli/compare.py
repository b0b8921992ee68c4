"""The subcommand `compare`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders, evaluation folders or metrics.json files; two or more."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Put evaluations side by side, with 95% intervals, and say which differences from the first one are shown by them."""
    from training.compare import compare as compare_runs

    compare_runs(runs, as_json, Console())
