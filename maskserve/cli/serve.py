"""The verbs about the service: `serve` answers over HTTP, `key` makes what opens it."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def serve(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="BUNDLE", help="Folder that `maskserve export` wrote, or a folder of such folders."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 3000,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Processes that share port and cores (default: MASKSERVE_WORKERS, or 1)."),
    ] = None,
    list_settings: Annotated[
        bool, typer.Option("--settings", help="List the environment's MASKSERVE_* settings, and stop.")
    ] = False,
) -> None:
    """Answer POST /v1/segment with masks until Ctrl-C; bundles that change or come are taken up meanwhile.

    Limits, keys, CORS, engine and log are set by MASKSERVE_* variables: --settings lists them. /v1/docs explains the
    interface.
    """
    from models.errors import ConfigError
    from service.server_process import serve as serve_bundle

    if list_settings:
        _print_settings(Console())
        return
    if bundle is None:
        raise ConfigError("Name the folder of a bundle, as in `maskserve serve runs/mydata/bundle`.")
    if workers is not None:
        os.environ["MASKSERVE_WORKERS"] = str(workers)
    raise typer.Exit(serve_bundle(bundle, host, port))


def _print_settings(console: Console) -> None:
    from service.settings import ENV_PREFIX, Settings

    table = Table("variable", "default", "what it sets", box=None, pad_edge=False, header_style="bold")
    for name, field in Settings.model_fields.items():
        default = "" if field.is_required() or field.default in (None, ()) else str(field.default)
        table.add_row(ENV_PREFIX + name.upper(), default, field.description)
    console.print(table)
