"""The subcommand `demo`."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for all files of the demo; an earlier demo in it is replaced.")
    ] = Path("runs/demo"),
    axes: Annotated[
        str, typer.Option(metavar="HW|T|DHW", help="HW for images; T for signals; DHW for volumes.")
    ] = "HW",
) -> None:
    """Run every step once: generate data, train, export, evaluate, serve, and request a mask over HTTP."""
    from maskserve.demo import demo as run_demo

    run_demo(out, axes)
