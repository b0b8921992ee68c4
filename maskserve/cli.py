"""The front door: one verb a function. Each opens its room when it is called, so that `--help` is quick."""

import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from maskserve.containerize import containerize
from maskserve.data import DataFolder, Format, data_app
from maskserve.predict import BundleFolder, Device, Engine, Precision, predict, with_address
from maskserve.serve import key, serve
from maskserve.train import plan, train

ROOT = Path(__file__).resolve().parent.parent  # the clone; in a wheel there is no room beside this one

app = typer.Typer(
    help="Image segmentation, from a folder of pictures to a mask over HTTP: "
    "train a fully convolutional network, freeze it into a bundle, serve it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.add_typer(data_app, name="data")
app.command(epilog="Settings, with their defaults: `maskserve train --settings`.")(train)
app.command()(plan)
app.command()(predict)
app.command()(serve)
app.command()(key)
app.command()(containerize)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="On an error, show the traceback (with any verb).")] = False,
) -> None:
    """`main` has taken --debug off the line already; it stands here for the help."""


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="An architecture to look into; without one, all are listed.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Its options, such as encoder=resnet50 output_stride=8."),
    ] = None,
    size: Annotated[str, typer.Option(metavar="WIDTHxHEIGHT", help="Of the picture, in pixels.")] = "480x360",
    classes: Annotated[int, typer.Option(min=2, max=255, help="Number of classes.")] = 21,
    encoders: Annotated[
        bool, typer.Option("--encoders", help="List the encoders; NAME is then a part of their names, or a pattern.")
    ] = False,
) -> None:
    """List the networks there are: parameters, GFLOP, stride, receptive field. With NAME, its options and its stages.

    Nothing is computed or fetched; the list takes some seconds.
    """
    with Console(stderr=True).status("opening PyTorch"):
        from maskserve import catalogue
        from maskserve.sizes import parse_size

    console = Console()
    picture = parse_size(size)
    if encoders:
        if options:
            raise typer.BadParameter("--encoders takes one pattern, as in `maskserve models --encoders 'resnet*'`")
        catalogue.show_encoders(name, console)
    elif name is None:
        catalogue.show_all(picture, classes, console)
    else:
        catalogue.show_one(name, options or [], picture, classes, console)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `maskserve train` left.")],
    out: Annotated[Path | None, typer.Option(help="Bundle folder to write (default: RUN/bundle).")] = None,
    input: Annotated[
        str | None, typer.Option(help="How pictures meet the network: native, fit, fit:SIDE (default: as trained).")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8/--no-int8", help="Also make an int8 graph, calibrated on training pictures.")
    ] = True,
    int8_limit: Annotated[
        float,
        typer.Option(metavar="POINTS", min=0, max=100, help="What int8 may cost of the validation mIoU, in points."),
    ] = 0.5,
) -> None:
    """Freeze a run's best network into a bundle, if the frozen one answers as the live one does."""
    from training.export import export as export_run

    target = export_run(run, out, input, int8_limit if int8 else None)
    Console().print(f"Next: maskserve serve {target}", highlight=False, markup=False)


@app.command(
    "import",
    epilog="A graph says most of it itself; what was understood is printed, with the options that change it.",
)
def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="onnx, or torchvision/NAME.")],
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="Bundle folder to write.")],
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="For onnx: the graph's file.")] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="FILE", help="A class a line, `name` or `name,r,g,b`; or `voc` for VOC's 21.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights for torchvision/NAME (default: torchvision's, fetched)."),
    ] = None,
    input: Annotated[
        str | None,
        typer.Option(
            help="How pictures meet the network: native, fit:SIDE, exact:HEIGHTxWIDTH (default: by the network)."
        ),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Pictures to compare on (default: drawn ones).")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="onnx: subtracted from the samples (default: ImageNet's).")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="onnx: what they are divided by then.")] = None,
    scale: Annotated[
        int | None,
        typer.Option(metavar="1|255", help="onnx: what white is before (default: 1 where mean and std are at most 1)."),
    ] = None,
    order: Annotated[str | None, typer.Option(help="onnx: rgb or bgr, the network's, also of mean and std.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="onnx: nchw or nhwc, of the input (default: by its shape).")
    ] = None,
    output: Annotated[str | None, typer.Option(metavar="NAME", help="onnx: the output to read.")] = None,
    output_layout: Annotated[
        str | None, typer.Option(help="onnx: nchw or nhwc, of that (default: by its shape).")
    ] = None,
    scores: Annotated[
        str | None, typer.Option(help="onnx: logits or probabilities (default: by the graph's end).")
    ] = None,
) -> None:
    """Bring a network that was trained elsewhere into a bundle, if it answers there as the original does."""
    from training.freezing.onnx_import.graph_reader import Told
    from training.import_model import bring

    told = Told.of(
        mean=mean,
        std=std,
        scale=scale,
        order=order,
        layout=layout,
        output=output,
        output_layout=output_layout,
        scores=scores,
    )
    target = bring(source, file, out, weights, classes, told, input, pictures)
    Console().print(f"Next: maskserve serve {target}", highlight=False, markup=False)


@app.command()
def evaluate(
    bundle: BundleFolder,
    data: DataFolder,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for metrics.json and report.html (default: evaluation/ beside the bundle)."),
    ] = None,
    format: Format = "auto",
    tta: Annotated[
        str | None,
        typer.Option(metavar="flip,SCALE,...", help="Test-time augmentation, as in flip,0.75,1,1.25 (default: none)."),
    ] = None,
    engine: Engine = "auto",
    precision: Precision = "auto",
    device: Device = "auto",
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Also time every engine, for the report: some ten seconds.")
    ] = True,
) -> None:
    """Measure a bundle on a split of DATA, at the pictures' own size: mIoU, Dice, boundary IoU, with 95% intervals.

    Leaves metrics.json, and report.html to look at. An earlier evaluation in the same folder is written over.
    """
    from training.evaluate import evaluate as evaluate_bundle
    from training.evaluate import evaluation_folder

    target = out or evaluation_folder(bundle)
    evaluate_bundle(bundle, data, split, target, format, tta, engine, precision, device, speed=speed)


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders, evaluation folders or metrics.json files; two or more."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Put evaluations side by side, with 95% intervals, and say which differences from the first one are shown by them."""
    from training.compare import compare as compare_runs

    compare_runs(runs, as_json, Console())


@app.command(
    epilog="Every engine runs in a process of its own, and all are asked in turn, so that they share what else the machine "
    "does. `first` is shorter where the engine finds its compiled network in the cache."
)
def bench(
    bundle: BundleFolder,
    picture: Annotated[
        Path | None, typer.Argument(metavar="PICTURE", help="What to label (default: the bundle's probe pictures).")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="Resize the picture to this, in pixels (default: as it is)."),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="How often each engine has its turn of three measured answers.")
    ] = 10,
    threads: Annotated[int, typer.Option(min=0, help="Cores for one inference; 0 is all of them.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write bench.json and bench.png there.")] = None,
) -> None:
    """Measure BUNDLE here: time, memory and agreement of each engine and number format. Marks what `auto` takes."""
    from maskserve.bench import bench as bench_bundle

    if not bench_bundle(bundle, picture, size, rounds, threads, out, Console()):
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for all that the demo makes; made anew each time.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Go the whole road once: draw data, train, export, evaluate, serve, ask over HTTP, check the answer."""
    from maskserve.demo import demo as run_demo

    run_demo(out)


def main(verb: str | None = None) -> None:
    """Run the command line; `verb` is what a script such as `python -m training.train` stands for.

    An error that was raised on purpose is one sentence and exit code 1, or 2 where the command line is at fault.
    """
    arguments = ([verb] if verb else []) + sys.argv[1:]
    debug = "--debug" in arguments
    arguments = with_address([word for word in arguments if word != "--debug"])
    if not (ROOT / "models" / "errors.py").is_file():
        _fail("The commands are used from a clone of maskserve; this installation holds maskserve.client alone.", 2)
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
        app(args=arguments, prog_name=f"python -m training.{verb}" if verb else "maskserve")
    except (MaskserveError, ClientError, OSError) as error:
        if debug:
            raise
        _fail(str(error), 2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        _fail("Stopped.", 130)


def _fail(sentence: str, code: int) -> None:
    mark = "" if code == 130 else "[red]error:[/] "
    Console(stderr=True).print(mark + escape(sentence), highlight=False, soft_wrap=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
