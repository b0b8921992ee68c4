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
    axes: Annotated[str, typer.Option(help="HW for images, T for signals, DHW for volumes.")] = "HW",
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="Image size in pixels (default: 480x360); of a signal its time steps (5000), of a volume WIDTHxHEIGHTxDEPTH in "
            "voxels (96x96x96).",
        ),
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, max=64, help="Channels or leads. Default: 3 of an image, else 1.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Sampling rate of signals in Hz: fields are also given in ms.")
    ] = None,
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
        from maskserve.model_tables import sample_input
        from maskserve.parsing import parse_lengths

    console = Console()
    rule = sample_input(axes, channels, rate)
    lengths = parse_lengths(size or {"HW": "480x360", "T": "5000", "DHW": "96x96x96"}[rule.axes], len(rule.axes))
    if encoders:
        if options:
            raise typer.BadParameter("--encoders takes one pattern, such as `maskserve models --encoders 'resnet*'`.")
        model_tables.print_encoders(name, console)
    elif name is None:
        model_tables.print_architectures(lengths, classes, console, rule)
    else:
        model_tables.print_architecture(name, options or [], lengths, classes, console, rule)
