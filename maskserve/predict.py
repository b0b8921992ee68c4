"""`maskserve predict`: masks for many pictures, in this process. As in `cli.py`, its rooms open when it is called."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track

if TYPE_CHECKING:
    from models.outputs.options import Options
    from models.segmenter import Segmenter

BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `maskserve export` wrote.")]
Engine = Annotated[str, typer.Option(help="openvino, onnxruntime, torch, or auto: the first that suits this machine.")]
Precision = Annotated[
    str, typer.Option(help="f32, bf16, fp16, int8, or auto: the quickest that the export found to be right.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU where there is one.")]


def predict(
    bundle: BundleFolder,
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Pictures, or folders of pictures.")],
    out: Annotated[Path, typer.Option(metavar="TARGET", help="Folder for the masks, named as the pictures.")],
    format: Annotated[
        str, typer.Option(help="png (indexed mask), overlay (JPEG), confidence (grey PNG), npy, or json.")
    ] = "png",
    classes: Annotated[
        str, typer.Option(metavar="NAME,...", help="Classes to keep; the others become void (default: all are kept).")
    ] = "",
    min_confidence: Annotated[
        float, typer.Option(metavar="0..1", help="Pixels whose softmax probability is below become void.")
    ] = 0.0,
    min_area: Annotated[
        int, typer.Option(metavar="PIXELS", help="Regions of fewer pixels, connected by their sides, become void.")
    ] = 0,
    alpha: Annotated[float, typer.Option(metavar="0..1", help="overlay: of the colours over the picture.")] = 0.5,
    masks: Annotated[str, typer.Option(help="json: rle (COCO's), polygons (GeoJSON's), png (in base64), or none.")] = (
        "rle"
    ),
    simplify: Annotated[
        float, typer.Option(metavar="PIXELS", help="json: how far an outline may move for fewer corners.")
    ] = 0.0,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="json: add the confidence as a grey PNG in base64.")
    ] = False,
    engine: Engine = "auto",
    precision: Precision = "auto",
    device: Device = "auto",
) -> None:
    """Write a mask for each picture. A picture that cannot be read is named, and the others go on; then exit code 1.

    What is left out becomes void: 255, transparent in png, the picture itself in overlay.
    """
    from models.outputs.options import Options

    names = tuple(name.strip() for name in classes.split(",") if name.strip())
    options = Options(alpha, names, min_confidence, min_area, simplify, masks, confidence)
    if not predict_all(bundle, sources, out, format, options, engine, precision, device):
        raise typer.Exit(1)


def predict_all(
    bundle: Path, sources: list[Path], target: Path, format: str, options: "Options", engine: str = "auto",
    precision: str = "auto", device: str = "auto",
) -> bool:  # fmt: skip
    """Write a mask for each picture into the folder `target`, under the picture's name.

    Returns: whether every picture could be read; those that could not are named and passed over.
    Raises: ConfigError for a format or a class that is not known, BundleError, EngineError; DataError for a source that
    is not there or two pictures of one name.
    """
    from models.bundle import open_bundle
    from models.errors import ConfigError, DataError, ImageError, TooLittleMemory
    from models.image import read
    from models.outputs import OUTPUTS, encode, needs_confidence
    from models.outputs.select import named
    from models.segmenter import Segmenter

    console = Console(stderr=True)
    if format not in OUTPUTS:
        raise ConfigError(f"The format {format!r} is not known; choose from {', '.join(OUTPUTS)}.")
    jobs = plan(sources, target, OUTPUTS[format].SUFFIX)
    opened = open_bundle(bundle)
    named(options.classes, opened.spec)  # before the first picture
    segmenter = Segmenter.load(opened, engine, precision, device)
    tell(segmenter, console)
    bad = 0
    for mask, picture in track(
        jobs.items(), "segmenting", console=console, transient=True, disable=not console.is_terminal
    ):
        try:
            prediction = segmenter.segment(read(picture), needs_confidence(format, options))
            encoded = encode(format, prediction, opened.spec, options)
        except (ImageError, DataError, TooLittleMemory) as error:
            console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            bad += 1
            continue
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_bytes(encoded)
    console.print(f"{target}: {len(jobs) - bad} of {len(jobs)} pictures segmented", highlight=False, markup=False)
    return bad == 0


def tell(segmenter: "Segmenter", console: Console) -> None:
    """Say what runs the network, and why."""
    if segmenter.choice:
        console.print(f"running on {segmenter.choice.why}", highlight=False, markup=False, soft_wrap=True)


def plan(sources: list[Path], target: Path, suffix: str) -> dict[Path, Path]:
    """The picture for each file to write: a folder's pictures keep their place below it. Raises: DataError."""
    from models.errors import DataError
    from models.image import SUFFIXES

    jobs: dict[Path, Path] = {}
    for source in sources:
        if not source.exists():
            raise DataError(f"{source} is not there; name pictures or folders of pictures.")
        found = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError(f"{source} holds no picture; wanted are files ending in {', '.join(sorted(SUFFIXES))}.")
        for picture in found:
            name = picture.relative_to(source) if source.is_dir() else Path(picture.name)
            mask = (target / name).with_suffix(suffix)
            if mask in jobs:
                raise DataError(f"{jobs[mask]} and {picture} would both become {mask}; segment them into two folders.")
            if mask.resolve() == picture.resolve():
                raise DataError(f"{mask} would overwrite its own picture; choose another --out.")
            jobs[mask] = picture
    return jobs
