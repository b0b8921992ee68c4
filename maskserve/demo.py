"""The whole road in one go: what every later feature widens, and the first thing that a new user sees."""

import io
import shutil
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from maskserve.client import Client
from models.bundle import open_bundle
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
MARKER_FILE = ".maskserve-demo"  # says that a folder was made by a demo and may be made anew


def demo(out: Path) -> None:
    """Draw, check, train, export, evaluate, serve, ask and compare; everything lands in `out`.

    Raises: DataError where `out` holds something else; ParityError where HTTP and process answer differently.
    """
    console = Console()
    started = time.monotonic()
    prepare_output_folder(out)
    data, run, bundle = out / "shapes", out / "run", out / "bundle"

    def step(title: str) -> None:
        console.print(
            f"\n[bold cyan]{time.monotonic() - started:4.0f} s[/]  [bold]{title}[/]", highlight=False, soft_wrap=True
        )

    step("Draw the shapes data set")
    generate_dataset(data)
    step("Train an FCN-8s on a ResNet-18, from scratch")
    if not has_bf16():
        console.print(
            "This CPU does not compute in bfloat16: training takes two to four times as long as it would there."
        )
    train(data, run, load_config(CONFIG_FILE, []), console=console)
    step("Export a bundle, if the frozen network answers as the live one")
    export(run, bundle, console=console)
    step("Evaluate the bundle on the test split")
    metrics = evaluate(bundle, data, "test", out, console=console)
    step("Serve it and ask for the mask of an image that it has never seen")
    check_service_parity(bundle, data, out, console)

    step("Done")
    for name, what in OUTPUT_FILES.items():
        console.print(f"  {out / name!s:28} {what}", highlight=False, soft_wrap=True)
    console.print(f"\ntest mIoU {metrics['miou']:.3f}. Type next:", highlight=False, soft_wrap=True)
    console.print(f"  .venv/bin/maskserve serve {bundle}", highlight=False, soft_wrap=True)
    console.print(
        f"  curl -F image=@{out}/image.jpg 'http://127.0.0.1:3000/v1/segment' -o mask.png",
        highlight=False,
        soft_wrap=True,
    )


OUTPUT_FILES = {
    "image.jpg": "a test image",
    "mask.png": "its mask, as the service answered",
    "overlay.png": "the mask over the image",
    "metrics.json": "the bundle's mIoU on the test split, by class, with intervals",
    "report.html": "the same to look at: confusions, the worst and the best images",
    "bundle": "the frozen network and all that serving it needs",
    "run": "the training: settings, curves, checkpoints",
}


def prepare_output_folder(out: Path) -> None:
    """An empty folder, in the place of an earlier demo's. Raises: DataError where it is something else."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER_FILE).exists():
            raise DataError(f"{out} holds something that no demo made; choose another --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER_FILE).touch()


def check_service_parity(bundle: Path, data: Path, out: Path, console: Console) -> None:
    """Post a test image to a running service; compare the answer with the bundle's own and with the truth."""
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

    opened = open_bundle(bundle)
    own = Segmenter.load(opened).segment(read_image(image)).labels
    equal = agreement(mask.labels, own)
    if equal < 0.999:
        raise ParityError(f"The service gave {equal:.2%} of the pixels the label that the bundle gives in process.")
    matrix = ConfusionMatrix(len(samples.classes))
    matrix.add(samples.labels(0), mask.labels)
    console.print(
        f"answered in {milliseconds:.0f} ms; {equal:.2%} of the pixels as in process; "
        f"{matrix.pixel_accuracy():.2%} right by the truth; {len(np.unique(mask.labels))} classes seen",
        highlight=False,
        soft_wrap=True,
    )
