"""The subcommand `models`."""

from typing import Annotated

import typer
from rich.console import Console


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="An architecture to look into; without one, all are listed.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Its options, such as encoder=resnet50 output_stride=8."),
    ] = None,
    size: Annotated[str, typer.Option(metavar="WIDTHxHEIGHT", help="Of the image, in pixels.")] = "480x360",
    classes: Annotated[int, typer.Option(min=2, max=255, help="Number of classes.")] = 21,
    encoders: Annotated[
        bool, typer.Option("--encoders", help="List the encoders; NAME is then a part of their names, or a pattern.")
    ] = False,
) -> None:
    """List the networks there are: parameters, GFLOP, stride, receptive field. With NAME, its options and its stages.

    Nothing is computed or fetched; the list takes some seconds.
    """
    with Console(stderr=True).status("opening PyTorch"):
        from maskserve import model_tables
        from maskserve.parsing import parse_size

    console = Console()
    image = parse_size(size)
    if encoders:
        if options:
            raise typer.BadParameter("--encoders takes one pattern, as in `maskserve models --encoders 'resnet*'`")
        model_tables.print_encoders(name, console)
    elif name is None:
        model_tables.print_architectures(image, classes, console)
    else:
        model_tables.print_architecture(name, options or [], image, classes, console)
