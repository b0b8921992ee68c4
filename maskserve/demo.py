"""The demo: every step once, from generated data to a mask over HTTP. The first thing that a new user runs."""

import io
import shutil
import time
from pathlib import Path

import numpy as np
from PIL import Image

from maskserve.client import Client
from models.bundle import open_bundle
from models.console import Console
from models.engines.openvino_engine import has_bf16
from models.errors import DataError, ParityError
from models.imaging.decode import read_image
from models.inference.segmenter import Segmenter, agreement
from service.server_process import background_server
from training.config_io import load_config
from training.data import load_split
from training.data.synthetic import generate_dataset
from training.evaluate import evaluate
from training.export import export
from training.metrics.confusion import ConfusionMatrix
from training.train import train

CONFIG_FILE = Path(__file__).resolve().parent.parent / "training" / "configs" / "demo.yaml"
MARKER_FILE = ".maskserve-demo"  # marks a folder that a demo created, which the next one may replace
MIN_SERVICE_AGREEMENT = 0.999  # fraction of pixels with equal labels over HTTP and in this process

OUTPUT_FILES = {
    "image.jpg": "a test image",
    "mask.png": "its mask, from the service",
    "overlay.png": "the mask over the image",
    "metrics.json": "the bundle's mIoU on the test split, by class, with intervals",
    "report.html": "the same as a report, with a confusion matrix and the worst and best images",
    "bundle": "the exported network and everything that serving it needs",
    "run": "the training run: settings, curves, checkpoints",
}


def demo(out: Path) -> None:
    """Generate data, train, export, evaluate, serve and compare. All files are written to `out`.

    Raises: DataError if `out` contains other files; ParityError if the service's mask differs from this process's.
    """
    console = Console()
    start = time.monotonic()

    def print_line(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    def print_step(title: str) -> None:
        print_line(f"\n[bold cyan]{time.monotonic() - start:4.0f} s[/]  [bold]{title}[/]")

    prepare_output_folder(out)
    data, run, bundle = out / "shapes", out / "run", out / "bundle"
    print_step("Generate the shapes data set")
    generate_dataset(data)
    print_step("Train an FCN-8s on a ResNet-18, from scratch")
    if not has_bf16():
        print_line("This CPU has no bfloat16 instructions: training takes two to four times as long as with them.")
    train(data, run, load_config(CONFIG_FILE, []), console=console)
    print_step("Export a bundle, and compare it with the trained network")
    export(run, bundle, console=console)
    print_step("Evaluate the bundle on the test split")
    metrics = evaluate(bundle, data, "test", out, console=console)
    print_step("Serve it, and request the mask of a test image")
    check_service_parity(bundle, data, out, console)

    print_step("Done")
    for name, description in OUTPUT_FILES.items():
        print_line(f"  {out / name!s:28} {description}")
    print_line(f"\ntest mIoU {metrics.miou:.3f}. Next:")
    print_line(f"  .venv/bin/maskserve serve {bundle}")
    print_line(f"  curl -F image=@{out}/image.jpg 'http://127.0.0.1:3000/v1/segment' -o mask.png")


def prepare_output_folder(out: Path) -> None:
    """Create an empty folder, or replace that of an earlier demo. Raises: DataError if it contains other files."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER_FILE).exists():
            raise DataError(f"{out} contains files that no demo created; choose another --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER_FILE).touch()


def check_service_parity(bundle: Path, data: Path, out: Path, console: Console) -> None:
    """Post a test image to a running service; compare its mask with this process's and with the ground truth.

    Writes image.jpg, mask.png and overlay.png to `out`. Raises: ParityError.
    """
    samples = load_split(data, "test")
    image = out / "image.jpg"
    shutil.copy(samples.pairs[0].image, image)
    with background_server(bundle) as url, Client(url) as client:
        console.print(f"service ready at {url}", highlight=False, soft_wrap=True)
        mask = client.segment(image)
        start = time.perf_counter()
        client.segment(image)
        milliseconds = (time.perf_counter() - start) * 1000
        overlay = client.overlay(image)
    mask.save(out / "mask.png")
    Image.open(io.BytesIO(overlay)).save(out / "overlay.png")

    expected = Segmenter.load(open_bundle(bundle)).segment(read_image(image)).labels
    equal = agreement(mask.labels, expected)
    if equal < MIN_SERVICE_AGREEMENT:
        raise ParityError(
            f"The service's mask equals this process's on {equal:.2%} of the pixels; expected at least "
            f"{MIN_SERVICE_AGREEMENT:.1%}. This is an error in maskserve: report it."
        )
    matrix = ConfusionMatrix(len(samples.classes))
    matrix.add(samples.labels(0), mask.labels)
    console.print(
        f"mask received in {milliseconds:.0f} ms; {equal:.2%} of its pixels equal those of this process, "
        f"{matrix.pixel_accuracy():.2%} the ground truth; {len(np.unique(mask.labels))} classes occur",
        highlight=False,
        soft_wrap=True,
    )
