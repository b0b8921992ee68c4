"""The command line `maskserve`: puts the subcommands together and turns errors into one line and an exit code.

Each subcommand imports what it needs when it is called, so that `--help` is quick.
"""

import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from maskserve.cli.bench import bench
from maskserve.cli.compare import compare
from maskserve.cli.containerize import containerize
from maskserve.cli.data import data_app
from maskserve.cli.demo import demo
from maskserve.cli.evaluate import evaluate
from maskserve.cli.export import export
from maskserve.cli.import_model import import_model
from maskserve.cli.key import key
from maskserve.cli.models import models
from maskserve.cli.plan import plan
from maskserve.cli.predict import predict, with_ray_address
from maskserve.cli.serve import serve
from maskserve.cli.train import train

ROOT = Path(__file__).resolve().parents[2]  # the clone; an installed wheel holds no `models` beside `maskserve`

app = typer.Typer(
    help="Image segmentation, from a folder of images to a mask over HTTP: "
    "train a fully convolutional network, freeze it into a bundle, serve it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command()(demo)
app.add_typer(data_app, name="data")
app.command()(models)
app.command()(plan)
app.command(epilog="Settings, with their defaults: `maskserve train --settings`.")(train)
app.command()(export)
app.command(
    "import", epilog="A graph says most of it itself; what was understood is printed, with the options that change it."
)(import_model)
app.command()(evaluate)
app.command()(compare)
app.command(
    epilog="Every engine runs in a process of its own, and all are asked in turn, so that they share what else the machine "
    "does. `first` is shorter where the engine finds its compiled network in the cache."
)(bench)
app.command()(predict)
app.command()(serve)
app.command()(key)
app.command()(containerize)


@app.callback()
def global_options(
    debug: Annotated[bool, typer.Option("--debug", help="On an error, show the traceback (with any verb).")] = False,
) -> None:
    """`main` has taken --debug off the line already; it stands here for the help."""


def main() -> None:
    """Run the command line.

    An error that was raised on purpose is one sentence and exit code 1, or 2 where the command line is at fault.
    """
    debug = "--debug" in sys.argv[1:]
    if not (ROOT / "models" / "errors.py").is_file():
        _exit_with_error(
            "The commands are used from a clone of maskserve; this installation holds maskserve.client alone.", 2
        )
    sys.path.insert(0, str(ROOT))  # before any `models` that a PYTHONPATH or the current folder may offer
    from maskserve.client import ClientError
    from models.errors import ConfigError, MaskserveError

    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")  # what libraries tell each other's developers
    for name in ("SIGTERM", "SIGHUP"):  # an exit that ends children and takes away half-written folders
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number and signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` has it ignored
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        app(args=with_ray_address([word for word in sys.argv[1:] if word != "--debug"]), prog_name="maskserve")
    except (MaskserveError, ClientError, OSError) as error:
        if debug:
            raise
        _exit_with_error(str(error), 2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        _exit_with_error("Stopped.", 130)


def _exit_with_error(sentence: str, code: int) -> None:
    mark = "" if code == 130 else "[red]error:[/] "
    Console(stderr=True).print(mark + escape(sentence), highlight=False, soft_wrap=True)
    raise SystemExit(code)
