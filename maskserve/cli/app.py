"""The command line `maskserve`: combines the subcommands, and turns errors into one line and an exit code.

Each subcommand imports what it needs when it is called, so that `--help` is fast.
"""

import errno
import io
import signal
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from maskserve.cli.bench import bench
from maskserve.cli.compare import compare
from maskserve.cli.containerize import containerize
from maskserve.cli.data import data_app
from maskserve.cli.demo import demo
from maskserve.cli.evaluate import evaluate
from maskserve.cli.explain import explain
from maskserve.cli.export import export
from maskserve.cli.help_layout import DATA, MEASURE, START, TRAIN, USE, Command, RootGroup
from maskserve.cli.import_model import import_model
from maskserve.cli.key import key
from maskserve.cli.models import models
from maskserve.cli.plan import plan
from maskserve.cli.predict import predict, with_ray_address
from maskserve.cli.serve import serve
from maskserve.cli.train import train

ROOT = Path(__file__).resolve().parents[2]  # the clone; an installed wheel has no `models` beside `maskserve`

app = typer.Typer(
    cls=RootGroup,
    help="Image segmentation, from a folder of images to masks over HTTP: "
    "train a fully convolutional network, export it as a bundle, serve it.",
    epilog="Each has `--help`, as in `maskserve train --help`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
# In the order in which a user needs them, which is that of the help.
app.command(cls=Command, rich_help_panel=START)(demo)
app.add_typer(data_app, name="data", rich_help_panel=DATA)
app.command(cls=Command, rich_help_panel=TRAIN)(models)
app.command(cls=Command, rich_help_panel=TRAIN)(plan)
app.command(cls=Command, rich_help_panel=TRAIN, epilog="Settings, with their defaults: `maskserve train --settings`.")(
    train
)
app.command(cls=Command, rich_help_panel=TRAIN)(export)
app.command(
    "import",
    cls=Command,
    rich_help_panel=TRAIN,
    epilog="Most properties are read from the graph, and printed with the options that override them.",
)(import_model)
app.command(cls=Command, rich_help_panel=MEASURE)(evaluate)
app.command(cls=Command, rich_help_panel=MEASURE)(compare)
app.command(cls=Command, rich_help_panel=MEASURE)(explain)
app.command(
    cls=Command,
    rich_help_panel=MEASURE,
    epilog="Every engine runs in its own process, and they are measured in turn, so that other load on the machine affects "
    "all alike. `first` is shorter if the compiled network is in the cache.",
)(bench)
app.command(cls=Command, rich_help_panel=USE)(predict)
app.command(cls=Command, rich_help_panel=USE)(serve)
app.command(cls=Command, rich_help_panel=USE)(key)
app.command(cls=Command, rich_help_panel=USE)(containerize)


@app.callback()
def global_options(
    debug: Annotated[
        bool, typer.Option("--debug", help="On an error, show the traceback. Works with every subcommand.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Declare --debug and --version for the help; `main` handles them."""


def main() -> None:
    """Run the command line.

    An error that is raised on purpose is printed as one line, with exit code 1, or 2 for an error in the command line.
    """
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if arguments[:1] == ["--version"]:  # also where only the client is installed
        print(f"maskserve {metadata.version('maskserve')}")
        return
    for stream in (sys.stdout, sys.stderr):  # prints file names that are not UTF-8 as they are
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    if not (ROOT / "models" / "errors.py").is_file():
        _exit_with_error(
            "This installation contains only maskserve.client. Run the commands from a clone of maskserve.", 2
        )
    sys.path.insert(0, str(ROOT))  # before another `models` in PYTHONPATH or the current folder
    from maskserve.client import ClientError
    from models.errors import ConfigError, MaskserveError

    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")  # warnings of libraries, for their developers
    for name in (
        "SIGTERM",
        "SIGHUP",
    ):  # exit as from an exception, which ends children and removes half-written folders
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number and signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores it
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        app(args=with_ray_address(arguments), prog_name="maskserve")
    except (MaskserveError, ClientError, OSError) as error:
        if debug:
            raise
        message = _describe_os_error(error) if isinstance(error, OSError) else str(error)
        _exit_with_error(message, 2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        _exit_as_stopped()
    except SystemExit as end:
        # Typer turns Ctrl-C into its Exit(130), from which it exits; a subcommand that raises one has printed its own line.
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            _exit_as_stopped()
        raise


def _exit_as_stopped() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would end in a traceback
    _exit_with_error("Stopped.", 130)


def _describe_os_error(error: OSError) -> str:
    """The file, what is wrong, and for a full disk what to do."""
    if error.strerror is None:
        return str(error)
    file = f"{error.filename}: " if error.filename is not None else ""
    full = " Free disk space, then run the command again." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{file}{error.strerror}.{full}"


def _exit_with_error(message: str, code: int) -> None:
    from models.console import Console

    prefix = "" if code == 130 else "[red]error:[/] "
    Console(stderr=True).print(prefix + escape(message), highlight=False, soft_wrap=True)
    raise SystemExit(code)
