"""The subcommand `serve`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

if TYPE_CHECKING:
    from models.console import Console


def serve(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="BUNDLE", help="Bundle that `maskserve export` wrote, or a folder of bundles."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 3000,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, help="Worker processes; they share port and cores (default: MASKSERVE_WORKERS, or 1)."
        ),
    ] = None,
    list_settings: Annotated[
        bool, typer.Option("--settings", help="List the MASKSERVE_* environment variables and exit.")
    ] = False,
) -> None:
    """Start the HTTP server. Reloads changed bundles.

    MASKSERVE_* environment variables set limits, API keys, hosts, path prefix, CORS, engine and log: --settings lists them.
    The API is documented at /v1/docs.
    """
    from models.console import Console
    from models.errors import ConfigError
    from service.server_process import serve as serve_bundle

    if list_settings:
        _print_settings(Console())
        return
    if bundle is None:
        raise ConfigError("No bundle given. Name its folder, as in `maskserve serve runs/mydata/bundle`.")
    if workers is not None:
        os.environ["MASKSERVE_WORKERS"] = str(workers)
    raise typer.Exit(serve_bundle(bundle, host, port))


def _print_settings(console: "Console") -> None:
    from service.settings import ENV_PREFIX, Settings

    table = Table("variable", "default", "description", box=None, pad_edge=False, header_style="bold")
    for name, field in Settings.model_fields.items():
        default = "" if field.is_required() or field.default in (None, ()) else field.default
        shown = ",".join(default) if isinstance(default, tuple) else str(default)
        table.add_row(ENV_PREFIX + name.upper(), shown, field.description)
    console.print(table)
