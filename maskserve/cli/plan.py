"""The subcommand `plan`."""

from pathlib import Path
from typing import Annotated

import typer

from maskserve.cli.options import DataFolder


def plan(
    data: DataFolder,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings to keep as they are, such as minutes=20."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan to FILE, for `maskserve train --config FILE`.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="Time limit of the training to plan.")
    ] = None,
) -> None:
    """Print the settings that `maskserve train DATA` would choose from the data and the machine, with a reason each."""
    from models.console import Console
    from training.config_io import load_config, parse_overrides

    overrides = [*(settings or []), *([f"minutes={minutes}"] if minutes is not None else [])]
    load_config(None, overrides)
    with Console(stderr=True).status("importing PyTorch"):
        from training.train import plan_training

    plan_training(data, out, parse_overrides(overrides), Console())
