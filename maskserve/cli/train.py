"""The subcommand `train`. torch is imported only after the settings are checked."""

import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from training.engine.loggers import LogMode


def train(
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="Folder of the data set (`maskserve data lint --help` lists the layouts)."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, such as epochs=20 encoder=resnet50.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to create (default: runs/NAME-OF-DATA).")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings, used instead of a plan; KEY=VALUE overrides it.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint.")] = False,
    minutes: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", help="Time limit over all starts; the schedule is shortened to fit."),
    ] = None,
    folds: Annotated[
        bool,
        typer.Option(
            "--folds",
            help="Cross-validation: DATA is a folder of `data split --folds`; a run per table, and their mean in folds.json.",
        ),
    ] = False,
    reset_head: Annotated[
        bool,
        typer.Option("--reset-head", help="With weights=FILE or BUNDLE: load all but the head, for other classes."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only errors.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object per validation to stdout, and the rest to stderr.")
    ] = False,
    list_settings: Annotated[
        bool, typer.Option("--settings", help="List all settings with defaults, and exit.")
    ] = False,
) -> None:
    """Train a network on DATA: lint, plan, train with a progress bar, keep the best and the last checkpoint.

    Without --config, settings are planned from the data and the machine and written to plan.yaml; KEY=VALUE overrides them.
    On several devices: devices=N, or torchrun ... -m maskserve train DATA devices=N.
    """
    from models.console import Console
    from training.config_io import print_settings

    if list_settings:
        print_settings(Console())
        return
    if data is None:
        raise typer.BadParameter("name the folder of the data set, as in `maskserve train DATA`")
    if quiet and as_json:
        raise typer.BadParameter("--quiet and --json exclude each other")
    run = out or Path("runs") / (data.stem if data.is_file() else data.resolve().name)
    overrides = [*(settings or []), *(["reset_head=true"] if reset_head else [])]
    overrides += [f"minutes={minutes}"] if minutes is not None else []
    log_mode: LogMode = "quiet" if quiet else "json" if as_json else "bar"
    (_train_folds if folds else _train)(data, run, config, overrides, resume, log_mode)


def _train_folds(
    data: Path, folder: Path, config_file: Path | None, overrides: list[str], resume: bool, log_mode: "LogMode"
) -> None:
    """Train a run per fold table, all with the settings planned for the first, and write the summary.

    With `resume` finished folds are kept unless a setting is given, and the others are continued or started.
    """
    from models.console import Console
    from models.errors import ConfigError
    from training.config_io import check_no_run, load_config
    from training.cross_validation import find_fold_tables, write_summary
    from training.run_folder import LAST_CHECKPOINT, METADATA_FILE, read_run_metadata

    if load_config(config_file, overrides).devices > 1:
        raise ConfigError("--folds trains on one device; leave devices out, or train each table by itself.")
    tables = find_fold_tables(data)
    runs = [folder / table.stem for table in tables]
    for run in runs:
        if not resume:
            check_no_run(run)
    for table, run in zip(tables, runs, strict=True):
        started = (run / LAST_CHECKPOINT).exists()
        finished = started and (run / METADATA_FILE).exists() and read_run_metadata(run).end is not None
        if finished and not overrides:
            continue
        planned = runs[0] / "plan.yaml"
        settings = planned if not started and config_file is None and run != runs[0] else config_file
        try:
            _train(table, run, settings, overrides, started, log_mode)
        except typer.Exit:
            typer.echo(f"To resume all folds: maskserve train {data} --folds --out {folder} --resume", err=True)
            raise
    write_summary(runs, folder, Console(quiet=log_mode == "quiet", stderr=log_mode == "json"))


def _train(
    data: Path, run: Path, config_file: Path | None, overrides: list[str], resume: bool, log_mode: "LogMode"
) -> None:
    """Check the settings, lock the run folder, plan if there is no config, and train."""
    from models.console import Console
    from training.config_io import check_no_run, load_config, load_resume_config, parse_overrides
    from training.run_folder import LAST_CHECKPOINT, lock_run, read_run_metadata

    start_time = time.monotonic()
    if not resume:
        check_no_run(run)
    config = load_resume_config(run, config_file, overrides) if resume else load_config(config_file, overrides)
    first_process = os.environ.get("RANK", "0") == "0"  # under torchrun only the first prints
    console = Console(quiet=log_mode == "quiet" or not first_process, stderr=log_mode == "json")
    plan_first = not resume and config_file is None
    if plan_first and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise typer.BadParameter(
            "several processes need one plan: `maskserve plan DATA --out FILE`, then --config FILE"
        )
    limit = f", {config.minutes:g} minutes including all preparation" if config.minutes else ""
    console.print(
        f"{run}: {'resuming' if resume else 'training'} on {data}{limit}", highlight=False, markup=False, soft_wrap=True
    )

    with lock_run(run) if first_process else nullcontext():
        with console.status("importing PyTorch"):
            from training.train import plan_training, train

        planned = None
        if plan_first:
            config_file = run / "plan.yaml"
            planned = plan_training(data, config_file, parse_overrides(overrides), console, start_time)
            config = planned.config
        if config.devices > 1 and "LOCAL_RANK" not in os.environ:
            from maskserve.torchrun import exec_torchrun

            if config.minutes and not resume:  # minus the time that planning took
                left = config.minutes - (time.monotonic() - start_time) / 60
                overrides = [*overrides, f"minutes={max(0.1, left):.2f}"]
            flags = {
                "--resume": resume,
                "--quiet": log_mode == "quiet",
                "--json": log_mode == "json",
                "--debug": "--debug" in sys.argv,
                f"--config={config_file}": config_file is not None,
            }
            arguments = [str(data), *overrides, f"--out={run}", *(flag for flag, is_set in flags.items() if is_set)]
            exec_torchrun(config.devices, arguments)

        try:
            train(data, run, config, resume, console, log_mode, planned, start_time)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would end in a traceback
            if first_process:
                saved = (run / LAST_CHECKPOINT).exists()
                resume_command = f"Stopped. To resume: maskserve train {data} --out {run} --resume"
                typer.echo(resume_command if saved else "Stopped before the end of the first step.", err=True)
            raise typer.Exit(130) from None
    end = read_run_metadata(run).end
    for warning in end.warnings if end else []:
        console.print("Warning:", warning, highlight=False, markup=False, soft_wrap=True)
    finished = "training finished, with warnings" if end and end.warnings else "training finished"
    console.print(f"{run}: {finished}. Next: maskserve export {run}", highlight=False, markup=False, soft_wrap=True)
