"""`maskserve data`: subcommands for data sets. As in `app.py`, each imports its modules when it runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from maskserve.cli.help_layout import Command, Group
from maskserve.cli.options import DataFolder, DataFormat, SandboxOption

data_app = typer.Typer(
    cls=Group,
    help="Inspect and check a data set, change its labels, split it, or generate one to try things on.",
    no_args_is_help=True,
)


@data_app.command("shapes", cls=Command)
def data_shapes(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="New folder to write.")],
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same data.")] = 0,
    train: Annotated[
        int | None, typer.Option(min=1, help="Number of training images, records or volumes; default: 600, 96 or 24.")
    ] = None,
    val: Annotated[int | None, typer.Option(min=1, help="The same for validation; default: 60, 16 or 6.")] = None,
    test: Annotated[int | None, typer.Option(min=1, help="The same for testing; default: 60, 16 or 6.")] = None,
    axes: Annotated[
        str,
        typer.Option(
            metavar="HW|T|DHW", help="HW: images. T: signals, waves in two leads. DHW: volumes, spheres and tubes."
        ),
    ] = "HW",
) -> None:
    """Generate a data set: images of overlapping, textured, noisy shapes in six classes, or signals or volumes in four."""
    from models.atomic_write import name_disk_full
    from models.console import Console
    from models.errors import ConfigError, quoted
    from training.data import synthetic, synthetic_signals, synthetic_volumes

    generators: dict[str, tuple[Any, Callable[[Path, int, dict[str, int]], None], str]] = {
        "HW": (synthetic, synthetic.generate_dataset, "images"),
        "T": (synthetic_signals, synthetic_signals.generate_signals, "records"),
        "DHW": (synthetic_volumes, synthetic_volumes.generate_volumes, "volumes"),
    }
    if axes not in generators:
        raise ConfigError(f"--axes {quoted(axes)} is unknown; choose HW for images, T for signals or DHW for volumes.")
    generator, generate, kind = generators[axes]
    given = {"train": train, "val": val, "test": test}
    counts = {split: given[split] or count for split, count in generator.SPLIT_COUNTS.items()}
    with name_disk_full(target):
        generate(target, seed, counts)
    total = f"{sum(counts.values())} {kind}, {len(generator.CLASSES)} classes"
    Console().print(f"{target}: {total}", highlight=False, markup=False)


@data_app.command("inspect", cls=Command)
def data_inspect(
    data: DataFolder,
    data_format: DataFormat = "auto",
    sandbox: SandboxOption = False,
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Contact sheet to write, a PNG; default: NAME-sheet.png in the current folder."
        ),
    ] = None,
) -> None:
    """Show what is recognized in a folder and why, and write a contact sheet of images with their masks. Start here.

    Prints the layout, splits, classes, the first pairs, and what is not read. Reads only a few files; `lint` reads them all.
    """
    from models.console import Console
    from models.errors import escape_line
    from training.lint.inspection import inspect_dataset

    console = Console()
    target = sheet or Path(f"{data.resolve().name}-sheet.png")
    for line in inspect_dataset(data, data_format, target):
        console.print(escape_line(line), highlight=False, markup=False, soft_wrap=True)


@data_app.command("lint", cls=Command)
def data_lint(
    data: DataFolder,
    data_format: DataFormat = "auto",
    sandbox: SandboxOption = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write an HTML page with thumbnails of the worst files of each kind."),
    ] = None,
    cache: Annotated[
        bool,
        typer.Option("--cache/--no-cache", help="Reuse the results of the last lint for unchanged files."),
    ] = True,
    max_files: Annotated[int, typer.Option(min=1, help="Files to list for each kind of finding.")] = 20,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE", help="Also compare the masks with this network, to find label noise: worst images first."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Read every image and mask once and report problems and how to fix them. Exit code 1 on errors.

    Finds unreadable files, images without a mask, size mismatches, masks without the EXIF rotation of their image, labels out of
    range, lossy and 0/255 masks, rare and absent classes, and duplicate images, above all across splits.
    """
    from models.console import Console
    from training.lint import lint_with_progress, print_lint_report
    from training.lint.json_report import lint_json

    console = Console(stderr=as_json)  # keeps the progress bar out of the JSON
    report = lint_with_progress(data, console, data_format, use_cache=cache, bundle=bundle)
    if as_json:
        typer.echo(json.dumps(lint_json(report), indent=2))
    else:
        print_lint_report(report, console, max_files)
    if html:
        from training.lint.html_report import write_html_report

        write_html_report(html, report, data)
        console.print(f"Report: {html}", highlight=False, markup=False, soft_wrap=True)
    if errors := len(report.errors):
        console.print(
            f"{errors} error{'s' * (errors > 1)} in {data}; fix them before training.",
            highlight=False,
            markup=False,
        )
        raise typer.Exit(1)
    console.print(f"No errors in {data}", highlight=False, markup=False)


@data_app.command("stats", cls=Command)
def data_stats(
    data: DataFolder,
    data_format: DataFormat = "auto",
    sandbox: SandboxOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Print image sizes and formats by split, and the pixels, images and typical width of each class."""
    from models.console import Console
    from models.errors import DataError
    from training.lint import lint_with_progress
    from training.lint.stats import dataset_stats, print_stats

    console = Console(stderr=as_json)  # keeps the progress bar out of the JSON
    report = lint_with_progress(data, console, data_format)
    unknown = next((finding.detail for finding in report.errors if finding.kind == "unknown classes"), None)
    if unknown:
        raise DataError(unknown)
    stats = dataset_stats(report)
    if as_json:
        typer.echo(json.dumps(stats, indent=2))
    else:
        print_stats(stats, console)


@data_app.command("split", cls=Command)
def data_split(
    data: DataFolder,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Table to write (.tsv, .csv), or a folder for a table list.tsv.")
    ],
    val: Annotated[float, typer.Option(help="Fraction of the images for validation, 0 to 1.")] = 0.1,
    test: Annotated[float, typer.Option(help="Fraction of the images for testing, 0 to 1; 0 for no test split.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same splits.")] = 0,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Keep images in one split if this pattern finds the same text in their names, such as '^(patient\\d+)'.",
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2, help="Write this many tables for cross-validation, OUT/fold0.tsv and so on; --val is not used."
        ),
    ] = None,
    data_format: DataFormat = "auto",
    sandbox: SandboxOption = False,
) -> None:
    """Assign images to train, val and test: writes a table split,image,mask to train on, and copies nothing.

    Equal images stay together. Each split gets its fraction of every class, also of rare ones.
    """
    from models.console import Console
    from training.data.tools.split import split_dataset, split_folds
    from training.reports.progress_bar import progress_bar

    console = Console()
    if folds:
        with progress_bar(console, "reading") as progress:
            tables = split_folds(data, out, folds, test, seed, group, data_format, progress)
        for table, by_split in tables.items():
            counts = ", ".join(f"{split} {len(pairs)}" for split, pairs in by_split.items())
            console.print(f"{table}: {counts}", highlight=False, markup=False, soft_wrap=True)
        return
    with progress_bar(console, "reading") as progress:
        table, pairs_by_split = split_dataset(data, out, val, test, seed, group, data_format, progress)
    counts = ", ".join(f"{split} {len(pairs)}" for split, pairs in pairs_by_split.items())
    console.print(f"{table}: {counts}", highlight=False, markup=False, soft_wrap=True)


@data_app.command("convert", cls=Command)
def data_convert(
    data: DataFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder to write.")],
    to: Annotated[
        str,
        typer.Option("--to", metavar="FORMAT", help="folder, coco, voc, yolo, labelme, label-studio, cvat or nnunet."),
    ],
    data_format: DataFormat = "auto",
    sandbox: SandboxOption = False,
) -> None:
    """Write the data set in the layout of another tool. The label of every pixel stays the same.

    Images are hard links if the disk allows it. A format that cannot store ignored pixels refuses data sets with such pixels.
    """
    from models.console import Console
    from training.data.tools.convert import convert_dataset
    from training.reports.progress_bar import progress_bar

    console = Console()
    with progress_bar(console, "writing") as progress:
        report = convert_dataset(data, out, to, data_format, progress)
    counts = ", ".join(f"{split} {count}" for split, count in report.counts.items())
    console.print(f"{out}: {counts}", highlight=False, markup=False, soft_wrap=True)
    if report.left_out:
        console.print(f"Left out {report.left_out} images without a mask", highlight=False)


@data_app.command("remap", cls=Command)
def data_remap(
    data: DataFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder to write.")],
    rules: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FROM=TO",
            help="Such as 2=void, road=0, tree,bush=plants. Without rules, only the layout changes.",
        ),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Class file of the new data set; TO is a class in it.")
    ] = None,
    nearest: Annotated[
        bool,
        typer.Option("--nearest", help="Map values without a class to the nearest value with one, to fix JPEG masks."),
    ] = False,
    separate: Annotated[
        bool,
        typer.Option(
            "--separate",
            help="Write a line of label 0 between touching objects of one class; needs a format of objects.",
        ),
    ] = False,
    data_format: DataFormat = "auto",
    sandbox: SandboxOption = False,
) -> None:
    """Write a copy of the data set with other labels, as images/ and masks/. Also converts any layout to this one.

    FROM is a class or several, by name or label, or a label without a class. TO is a class, a new name, or void to ignore it.
    Classes without any label left are removed, and the others are renumbered. Images are hard links if the disk allows it.
    """
    from models.atomic_write import name_disk_full
    from models.console import Console
    from training.data.tools.remap import describe_mapping, remap_dataset
    from training.reports.progress_bar import progress_bar

    console = Console()
    with name_disk_full(out), progress_bar(console, "writing") as progress:
        mapping, opened = remap_dataset(data, out, rules or [], classes, nearest, data_format, progress, separate)
    for line in describe_mapping(mapping, opened):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    counts = ", ".join(f"{split} {len(dataset)}" for split, dataset in opened.items())
    console.print(f"{out}: {counts}", highlight=False, markup=False, soft_wrap=True)
