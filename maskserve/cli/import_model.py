"""The subcommand `import`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from maskserve.cli.options import BundleName, expand_options

ONNX_PANEL = "Options of onnx"


@dataclass(frozen=True)
class OnnxOptions:
    """How the input and the output of an ONNX graph are to be read; see `UserHints`."""

    channels: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Names of the input's channels, in its order (default: red,green,blue).",
            rich_help_panel=ONNX_PANEL,
        ),
    ] = None
    samples: Annotated[
        str | None,
        typer.Option(
            help="Type of the samples of images that are not RGB: uint8, uint16, int16 or float32 (default: float32).",
            rich_help_panel=ONNX_PANEL,
        ),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B", help="Subtracted from the pixels (default: ImageNet's).", rich_help_panel=ONNX_PANEL
        ),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="Divisor after that (default: ImageNet's).", rich_help_panel=ONNX_PANEL),
    ] = None
    scale: Annotated[
        int | None,
        typer.Option(
            metavar="1|255",
            help="Value of white in the input (default: 1 if mean and std are at most 1).",
            rich_help_panel=ONNX_PANEL,
        ),
    ] = None
    order: Annotated[
        str | None,
        typer.Option(
            help="Channel order of input, mean and std: rgb or bgr (default: rgb).", rich_help_panel=ONNX_PANEL
        ),
    ] = None
    layout: Annotated[
        str | None,
        typer.Option(help="Layout of the input: nchw or nhwc (default: from its shape).", rich_help_panel=ONNX_PANEL),
    ] = None
    output: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The output to read, if there are several.", rich_help_panel=ONNX_PANEL),
    ] = None
    output_layout: Annotated[
        str | None,
        typer.Option(help="Layout of the output: nchw or nhwc (default: from its shape).", rich_help_panel=ONNX_PANEL),
    ] = None
    scores: Annotated[
        str | None,
        typer.Option(
            help="Kind of the output: logits or probabilities (default: from the last operator).",
            rich_help_panel=ONNX_PANEL,
        ),
    ] = None


@expand_options
def import_model(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="onnx, or torchvision/NAME.")],
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="Bundle folder to write.")],
    onnx: OnnxOptions,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="For onnx: the ONNX file.")] = None,
    name: BundleName = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="File with one class per line, `name` or `name,r,g,b`; or voc for PASCAL VOC."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights for torchvision/NAME (default: torchvision's, downloaded)."),
    ] = None,
    input_rule: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="Resize rule for input images: native, fit:SIDE or exact:HEIGHTxWIDTH (default: fit:693 for "
            "torchvision/NAME; native or the graph's one size for onnx).",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Images for the parity check (default: synthetic ones)."),
    ] = None,
) -> None:
    """Import a network that was trained elsewhere into a bundle, if it predicts there as the original does."""
    from models.console import Console
    from training.freezing.onnx_import.graph_reader import UserHints
    from training.import_model import import_model as import_into_bundle

    hints = UserHints.parse(**asdict(onnx))
    target = import_into_bundle(source, file, out, weights, classes, hints, input_rule, images, name=name)
    Console().print(f"Next: maskserve serve {target}", highlight=False, markup=False)
