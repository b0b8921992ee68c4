"""`maskserve data`: the verbs about data sets. As in `cli.py`, each opens its room when it is called."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from maskserve.cli.options import DataFolder, DataFormat

data_app = typer.Typer(
    help="Look for what is wrong with a data set, change its labels, split it, or make one to try things on.",
    no_args_is_help=True,
)


@data_app.command("shapes")
def data_shapes(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="New folder to draw into.")],
    seed: Annotated[int, typer.Option(help="Of the drawing: the same seed gives the same images.")] = 0,
    train: Annotated[int, typer.Option(min=1, help="Images to train on.")] = 600,
    val: Annotated[int, typer.Option(min=1, help="Images to validate on.")] = 60,
    test: Annotated[int, typer.Option(min=1, help="Images to test on.")] = 60,
) -> None:
    """Draw the shapes data set: overlapping, textured, noisy shapes in six classes."""
    from training.data.synthetic import CLASSES, generate_dataset

    generate_dataset(target, seed, {"train": train, "val": val, "test": test})
    Console().print(f"{target}: {train + val + test} images, {len(CLASSES)} classes", highlight=False, markup=False)


@data_app.command("lint")
def data_lint(
    data: DataFolder,
    data_format: DataFormat = "auto",
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page as well, with small images of the worst files of each kind."),
    ] = None,
    cache: Annotated[
        bool,
        typer.Option("--cache/--no-cache", help="Files that are as they were at the last lint are not read again."),
    ] = True,
    max_files: Annotated[int, typer.Option(min=1, help="Files named of each kind of finding.")] = 20,
) -> None:
    """Read every image and mask once and say what is wrong, and what to do; exit code 1 on errors.

    Finds unreadable files, images without a mask, sizes that differ, masks in the camera's frame, labels out of range, lossy and
    0/255 masks, rare and missing classes, and images that are there twice, in two splits above all.
    """
    from training.lint import lint_with_progress, print_lint_report

    console = Console()
    report = lint_with_progress(data, console, data_format, use_cache=cache)
    print_lint_report(report, console, max_files)
    if html:
        from training.lint.html_report import write_html_report

        write_html_report(html, report, data)
        console.print(f"{html} shows them.", highlight=False, markup=False)
    if errors := len(report.errors):
        console.print(
            f"{errors} error{'s' * (errors > 1)} in {data}, to be mended before a training.",
            highlight=False,
            markup=False,
        )
        raise typer.Exit(1)
    console.print(f"no errors in {data}", highlight=False, markup=False)


@data_app.command("stats")
def data_stats(
    data: DataFolder,
    data_format: DataFormat = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """What a data set is made of: sizes and formats by split, each class's share, images and width of objects."""
    from training.lint import lint_with_progress
    from training.lint.stats import dataset_stats, print_stats

    console = Console(stderr=as_json)  # the progress bar must not stand in the JSON
    told = dataset_stats(lint_with_progress(data, console, data_format))
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    else:
        print_stats(told, console)


@data_app.command("split")
def data_split(
    data: DataFolder,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Table to write (.tsv, .csv), or a folder to write list.tsv into.")
    ],
    val: Annotated[float, typer.Option(help="Share of the images to validate on, 0 to 1.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the images to test on, 0 to 1; 0 for none.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the dealing: the same seed gives the same splits.")] = 0,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX", help="Keep images together in whose names this finds the same, as in '^(patient\\d+)'."
        ),
    ] = None,
    data_format: DataFormat = "auto",
) -> None:
    """Deal the images anew to train, val and test: a table `split,image,mask` to train on; nothing is copied.

    Equal images stay together, and rare classes are dealt by the shares too.
    """
    from training.data.tools.split import split_dataset
    from training.reports.progress_bar import progress_bar

    console = Console()
    with progress_bar(console, "reading") as progress:
        table, dealt = split_dataset(data, out, val, test, seed, group, data_format, progress)
    counts = ", ".join(f"{name} {len(pairs)}" for name, pairs in dealt.items())
    console.print(f"{table}: {counts}", highlight=False, markup=False, soft_wrap=True)


@data_app.command("remap")
def data_remap(
    data: DataFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder to write.")],
    rules: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FROM=TO]...", help="Such as 2=void, road=0, tree,bush=plants. None: convert alone."),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Class file of the new data set, in which TO stands.")
    ] = None,
    nearest: Annotated[
        bool, typer.Option("--nearest", help="Give values of no class that of the nearest one: mends JPEG masks.")
    ] = False,
    data_format: DataFormat = "auto",
) -> None:
    """Write the data set anew as images/ and masks/ with other labels; from any layout, so that it converts as well.

    FROM: a class or several, by name or label, or a label that no class has. TO: a class, a new name, or void. Classes that nothing
    is left of go, and the others move up. Images are linked where the disk can.
    """
    from training.data.tools.remap import describe_mapping, remap_dataset
    from training.reports.progress_bar import progress_bar

    console = Console()
    with progress_bar(console, "writing") as progress:
        recipe, opened = remap_dataset(data, out, rules or [], classes, nearest, data_format, progress)
    for line in describe_mapping(recipe, opened):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    counts = ", ".join(f"{name} {len(samples)}" for name, samples in opened.items())
    console.print(f"{out}: {counts}", highlight=False, markup=False, soft_wrap=True)
