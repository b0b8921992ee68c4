"""The subcommand `plan`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from maskserve.cli.options import DataFolder


def plan(
    data: DataFolder,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that stand, such as minutes=20.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan there, for `maskserve train --config FILE`.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(metavar="MINUTES", help="Plan for so long a training.")] = None,
) -> None:
    """Print how `maskserve train` would train on DATA, and why: the settings follow from the data and the machine."""
    from training.config_io import load_config, parse_overrides

    words = [*(settings or []), *([f"minutes={minutes}"] if minutes is not None else [])]
    load_config(None, words)
    with Console(stderr=True).status("opening PyTorch"):
        from training.train import plan_training as plan_training

    plan_training(data, out, parse_overrides(words), Console())
