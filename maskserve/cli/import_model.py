"""The subcommand `import`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def import_model(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="onnx, or torchvision/NAME.")],
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="Bundle folder to write.")],
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="For onnx: the graph's file.")] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="FILE", help="A class a line, `name` or `name,r,g,b`; or `voc` for VOC's 21.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights for torchvision/NAME (default: torchvision's, fetched)."),
    ] = None,
    input_rule: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="How images meet the network: native, fit:SIDE, exact:HEIGHTxWIDTH (default: by the network).",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Images to compare on (default: drawn ones).")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="onnx: subtracted from the samples (default: ImageNet's).")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="onnx: what they are divided by then.")] = None,
    scale: Annotated[
        int | None,
        typer.Option(metavar="1|255", help="onnx: what white is before (default: 1 where mean and std are at most 1)."),
    ] = None,
    order: Annotated[str | None, typer.Option(help="onnx: rgb or bgr, the network's, also of mean and std.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="onnx: nchw or nhwc, of the input (default: by its shape).")
    ] = None,
    output: Annotated[str | None, typer.Option(metavar="NAME", help="onnx: the output to read.")] = None,
    output_layout: Annotated[
        str | None, typer.Option(help="onnx: nchw or nhwc, of that (default: by its shape).")
    ] = None,
    scores: Annotated[
        str | None, typer.Option(help="onnx: logits or probabilities (default: by the graph's end).")
    ] = None,
) -> None:
    """Bring a network that was trained elsewhere into a bundle, if it answers there as the original does."""
    from training.freezing.onnx_import.graph_reader import UserHints
    from training.import_model import import_model

    told = UserHints.parse(
        mean=mean,
        std=std,
        scale=scale,
        order=order,
        layout=layout,
        output=output,
        output_layout=output_layout,
        scores=scores,
    )
    target = import_model(source, file, out, weights, classes, told, input_rule, images)
    Console().print(f"Next: maskserve serve {target}", highlight=False, markup=False)
