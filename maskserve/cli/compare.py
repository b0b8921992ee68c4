"""The subcommand `compare`."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Two or more run folders, evaluation folders or metrics.json files."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Compare evaluations side by side, with 95% intervals; says which differences from the first one are significant."""
    from models.console import Console
    from training.compare import compare as compare_runs

    compare_runs(runs, as_json, Console())
