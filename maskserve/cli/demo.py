"""The subcommand `demo`."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for all that the demo makes; made anew each time.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Go the whole road once: draw data, train, export, evaluate, serve, ask over HTTP, check the answer."""
    from maskserve.demo import demo as run_demo

    run_demo(out)
