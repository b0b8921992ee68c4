"""The subcommand `explain`."""

from pathlib import Path
from typing import Annotated

import typer

from maskserve.cli.options import DataFormat, SandboxOption, check_bundle_is_first


def explain(
    source: Annotated[
        Path, typer.Argument(metavar="BUNDLE|RUN", help="Folder that `maskserve export` or `maskserve train` wrote.")
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGE...", help="Images to look at (default: one of --data, or of the bundle's probes)."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for index.html, explain.json and images/.")] = ...,  # type: ignore[assignment]
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Data set with masks, for the views of errors.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of --data: train, val, test, or all.")] = "test",
    data_format: DataFormat = "auto",
    views: Annotated[
        str | None, typer.Option(metavar="VIEW,...", help="Views, separated by commas (default: all).")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="X,Y", help="Pixel that views of a single pixel explain (default: the center)."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="Class to explain at the pixel (default: the predicted one)."),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Layer whose maps and units are shown (default: every stage).")
    ] = None,
    evolution: Annotated[
        bool, typer.Option("--evolution", help="Require the view of the training, which needs the run folder.")
    ] = False,
    sandbox: SandboxOption = False,
) -> None:
    """Look inside a network: what it sees, why it labels a pixel, where it fails, and what is wrong with it.

    Writes one HTML page that opens offline, with findings first, and explain.json with every number. Bundles without torch
    weights (imported, int8 only) get the views that need none.
    """
    check_bundle_is_first(source, images or [])
    from maskserve.parsing import parse_point
    from training.explain.run import explain as explain_source

    names = [name.strip() for name in views.split(",") if name.strip()] if views else None
    point = parse_point(at) if at else None
    explain_source(source, images or [], out, data, names, point, layer, evolution, split, data_format, target=target)
