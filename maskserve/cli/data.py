"""`maskserve data`: the verbs about data sets. As in `cli.py`, each opens its room when it is called."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from maskserve.cli.options import DataFolder, Format

data_app = typer.Typer(
    help="Look for what is wrong with a data set, change its labels, split it, or make one to try things on.",
    no_args_is_help=True,
)


@data_app.command("shapes")
def data_shapes(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="New folder to draw into.")],
    seed: Annotated[int, typer.Option(help="Of the drawing: the same seed gives the same pictures.")] = 0,
    train: Annotated[int, typer.Option(min=1, help="Pictures to train on.")] = 600,
    val: Annotated[int, typer.Option(min=1, help="Pictures to validate on.")] = 60,
    test: Annotated[int, typer.Option(min=1, help="Pictures to test on.")] = 60,
) -> None:
    """Draw the shapes data set: overlapping, textured, noisy shapes in six classes."""
    from training.data.synthetic import CLASSES, draw

    draw(target, seed, {"train": train, "val": val, "test": test})
    Console().print(f"{target}: {train + val + test} pictures, {len(CLASSES)} classes", highlight=False, markup=False)


@data_app.command("lint")
def data_lint(
    data: DataFolder,
    format: Format = "auto",
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page as well, with small pictures of the worst files of each kind."),
    ] = None,
    cache: Annotated[
        bool,
        typer.Option("--cache/--no-cache", help="Files that are as they were at the last lint are not read again."),
    ] = True,
    most: Annotated[int, typer.Option(min=1, help="Files named of each kind of finding.")] = 20,
) -> None:
    """Read every picture and mask once and say what is wrong, and what to do; exit code 1 on errors.

    Finds unreadable files, pictures without a mask, sizes that differ, masks in the camera's frame, labels out of range, lossy and
    0/255 masks, rare and missing classes, and pictures that are there twice, in two splits above all.
    """
    from training.lint import show, watched

    console = Console()
    report = watched(data, console, format, cached=cache)
    show(report, console, most)
    if html:
        from training.lint.html_report import write_page

        write_page(html, report, data)
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
    format: Format = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """What a data set is made of: sizes and formats by split, each class's share, pictures and width of objects."""
    from training.lint import watched
    from training.lint.stats import show_stats, stats

    console = Console(stderr=as_json)  # the progress bar must not stand in the JSON
    told = stats(watched(data, console, format))
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    else:
        show_stats(told, console)


@data_app.command("split")
def data_split(
    data: DataFolder,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Table to write (.tsv, .csv), or a folder to write list.tsv into.")
    ],
    val: Annotated[float, typer.Option(help="Share of the pictures to validate on, 0 to 1.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the pictures to test on, 0 to 1; 0 for none.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the dealing: the same seed gives the same splits.")] = 0,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX", help="Keep pictures together in whose names this finds the same, as in '^(patient\\d+)'."
        ),
    ] = None,
    format: Format = "auto",
) -> None:
    """Deal the pictures anew to train, val and test: a table `split,image,mask` to train on; nothing is copied.

    Equal pictures stay together, and rare classes are dealt by the shares too.
    """
    from training.data.tools.split import split
    from training.reports.progress_bar import counted

    console = Console()
    with counted(console, "reading") as progress:
        table, dealt = split(data, out, val, test, seed, group, format, progress)
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
    format: Format = "auto",
) -> None:
    """Write the data set anew as images/ and masks/ with other labels; from any layout, so that it converts as well.

    FROM: a class or several, by name or label, or a label that no class has. TO: a class, a new name, or void. Classes that nothing
    is left of go, and the others move up. Pictures are linked where the disk can.
    """
    from training.data.tools.remap import describe, remap
    from training.reports.progress_bar import counted

    console = Console()
    with counted(console, "writing") as progress:
        recipe, opened = remap(data, out, rules or [], classes, nearest, format, progress)
    for line in describe(recipe, opened):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    counts = ", ".join(f"{name} {len(samples)}" for name, samples in opened.items())
    console.print(f"{out}: {counts}", highlight=False, markup=False, soft_wrap=True)
