"""Masks for many pictures, in this process."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from models.bundle import open_bundle
from models.errors import ConfigError, DataError, ImageError, TooLittleMemory
from models.image import SUFFIXES, read
from models.outputs import OUTPUTS
from models.outputs.options import Options
from models.segmenter import Segmenter


def predict(
    bundle: Path, sources: list[Path], target: Path, format: str = "png", engine: str = "auto", precision: str = "auto",
    device: str = "auto",
) -> bool:  # fmt: skip
    """Write a mask for each picture into the folder `target`, under the picture's name.

    Returns: whether every picture could be read; those that could not are named and passed over.
    Raises: BundleError, EngineError; DataError for a source that is not there or two pictures of one name.
    """
    console = Console(stderr=True)
    if format not in OUTPUTS:
        raise ConfigError(f"The format {format!r} is not known; choose from {', '.join(OUTPUTS)}.")
    output = OUTPUTS[format]
    jobs = plan(sources, target, output.SUFFIX)
    opened = open_bundle(bundle)
    segmenter = Segmenter.load(opened, engine, precision, device)
    tell(segmenter, console)
    bad = 0
    for mask, picture in track(
        jobs.items(), "segmenting", console=console, transient=True, disable=not console.is_terminal
    ):
        try:
            encoded = output.encode(segmenter.segment(read(picture), output.CONFIDENCE), opened.spec, Options())
        except (ImageError, DataError, TooLittleMemory) as error:
            console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            bad += 1
            continue
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_bytes(encoded)
    console.print(f"{target}: {len(jobs) - bad} of {len(jobs)} pictures segmented", highlight=False, markup=False)
    return bad == 0


def tell(segmenter: Segmenter, console: Console) -> None:
    """Say what runs the network, and why."""
    if segmenter.choice:
        console.print(f"running on {segmenter.choice.why}", highlight=False, markup=False, soft_wrap=True)


def plan(sources: list[Path], target: Path, suffix: str) -> dict[Path, Path]:
    """The picture for each file to write: a folder's pictures keep their place below it. Raises: DataError."""
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
