"""The subcommand `models`: lists and describes the networks."""

from typing import Annotated

import typer


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Architecture to describe. Default: list all.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Options of the architecture, such as encoder=resnet50 output_stride=8."
        ),
    ] = None,
    size: Annotated[str, typer.Option(metavar="WIDTHxHEIGHT", help="Image size in pixels.")] = "480x360",
    classes: Annotated[int, typer.Option(min=2, max=255, help="Number of classes.")] = 21,
    encoders: Annotated[
        bool,
        typer.Option("--encoders", help="List the encoders whose name contains or matches NAME, such as 'resnet*'."),
    ] = False,
) -> None:
    """List the networks with parameters, GFLOP, stride and receptive field. With NAME, show its options and stages.

    Runs no network and downloads nothing; the list takes some seconds.
    """
    from models.console import Console

    with Console(stderr=True).status("loading PyTorch"):
        from maskserve import model_tables
        from maskserve.parsing import parse_size

    console = Console()
    image = parse_size(size)
    if encoders:
        if options:
            raise typer.BadParameter("--encoders takes one pattern, such as `maskserve models --encoders 'resnet*'`.")
        model_tables.print_encoders(name, console)
    elif name is None:
        model_tables.print_architectures(image, classes, console)
    else:
        model_tables.print_architecture(name, options or [], image, classes, console)
