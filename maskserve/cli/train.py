"""`maskserve train` and `maskserve plan`. As in `cli.py`, each opens its room when it is called."""

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def train(
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="Folder of the data set (`data lint --help` tells the layouts)."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as epochs=20 encoder=resnet50.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make (default: runs/NAME-OF-DATA).")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings, in place of the plan; KEY=VALUE stands over it.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the run's last checkpoint, as if it had not been stopped."),
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", help="Train for so long, over all starts; the schedule ends with it."),
    ] = None,
    reset_head: Annotated[
        bool,
        typer.Option("--reset-head", help="With weights=FILE or BUNDLE: keep all but the head, for other classes."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors alone.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: an object a line for each validation; the rest to stderr.")
    ] = False,
    list_settings: Annotated[
        bool, typer.Option("--settings", help="List every setting with its default, and stop.")
    ] = False,
) -> None:
    """Train a network on DATA: lint, plan, train with a progress bar, keep the best and the last checkpoint.

    Without --config, settings follow from the data and the machine, and are left as plan.yaml; KEY=VALUE stands over them.
    On several devices: devices=N, or torchrun ... -m maskserve train DATA devices=N.
    """
    from training.config_io import check_no_run, load_config, load_resume_config, parse_overrides, print_settings
    from training.run_folder import LAST_CHECKPOINT

    if list_settings:
        print_settings(Console())
        return
    if data is None:
        raise typer.BadParameter("name the folder of the data set, as in `maskserve train DATA`")
    if quiet and as_json:
        raise typer.BadParameter("--quiet and --json do not go together")
    run = out or Path("runs") / (data.stem if data.is_file() else data.resolve().name)
    words = [*(settings or []), *(["reset_head=true"] if reset_head else [])]
    words += [f"minutes={minutes}"] if minutes is not None else []
    if not resume:
        check_no_run(run)
    parsed = load_resume_config(run, config, words) if resume else load_config(config, words)
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes one speaks
    console = Console(quiet=quiet or not first, stderr=as_json)

    from training.train import (
        plan_training as plan_training,
    )  # torch comes in here, after the settings were found to be right
    from training.train import train as train_run

    planned = None
    if not resume and config is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise typer.BadParameter(
            "several processes need one plan: `maskserve plan DATA --out FILE`, then --config FILE"
        )
    if not resume and config is None:
        config = run / "plan.yaml"
        planned = plan_training(data, config, parse_overrides(words), console)
        parsed = planned.config
    if parsed.devices > 1 and "LOCAL_RANK" not in os.environ:
        from maskserve.torchrun import exec_torchrun

        if planned and parsed.minutes:  # less what the plan took of them
            words.append(f"minutes={max(0.1, parsed.minutes - (time.monotonic() - planned.start_time) / 60):.2f}")
        flags = {
            "--resume": resume,
            "--quiet": quiet,
            "--json": as_json,
            "--debug": "--debug" in sys.argv,
            f"--config={config}": config is not None,
        }
        exec_torchrun(parsed.devices, [str(data), *words, f"--out={run}", *(flag for flag, on in flags.items() if on)])

    try:
        train_run(data, run, parsed, resume, console, "quiet" if quiet else "json" if as_json else "bar", planned)
    except KeyboardInterrupt:
        kept = (run / LAST_CHECKPOINT).exists()
        if first:
            typer.echo(
                f"Stopped. Go on with: maskserve train {data} --out {run} --resume"
                if kept
                else "Stopped before the first step ended.",
                err=True,
            )
        raise typer.Exit(130) from None
    console.print(f"{run}: trained. Next: maskserve export {run}", highlight=False, markup=False, soft_wrap=True)
