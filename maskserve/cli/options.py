"""Arguments and options that several subcommands share."""

from pathlib import Path
from typing import Annotated

import typer

DataFolder = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="Folder of the data set, such as images/NAME.jpg with masks/NAME.png, or a table split,image,mask (CSV, TSV).",
    ),
]
DataFormat = Annotated[
    str,
    typer.Option("--format", help="Layout: folder, table, camvid, voc, cityscapes, coco, or auto to recognise it."),
]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `maskserve export` wrote.")]
EngineOption = Annotated[
    str, typer.Option(help="openvino, onnxruntime, torch, or auto: the first that suits this machine.")
]
PrecisionOption = Annotated[
    str, typer.Option(help="f32, bf16, fp16, int8, or auto: the quickest that the export found to be right.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU where there is one.")]
