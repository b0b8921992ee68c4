"""The demo: every step once, from generated data to a mask over HTTP. The first thing that a new user runs."""

import io
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from maskserve.client import Client
from models.bundle import open_bundle
from models.console import Console
from models.engines.openvino_engine import has_bf16
from models.errors import ConfigError, DataError, ParityError, quoted
from models.imaging.decode import Labels, read_image
from models.inference.segmenter import Segmenter, agreement
from models.inference.signals import segment_signal
from models.inference.volumes import segment_volume
from models.readers import read_input_file, read_sample
from models.spec import AXES
from service.server_process import background_server
from training.config_io import load_config
from training.data import load_split
from training.data.synthetic import generate_dataset
from training.data.synthetic_signals import generate_signals
from training.data.synthetic_volumes import generate_volumes
from training.evaluate import evaluate
from training.export import export
from training.metrics.confusion import ConfusionMatrix
from training.train import train

CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "training" / "configs"
MARKER_FILE = ".maskserve-demo"  # marks a folder that a demo created, which the next one may replace
MIN_SERVICE_AGREEMENT = 0.999  # fraction of pixels with equal labels over HTTP and in this process

OUTPUT_FILES = {
    "metrics.json": "the bundle's mIoU on the test split, by class, with intervals",
    "report.html": "the same as a report, with a confusion matrix and the worst and best images",
    "bundle": "the exported network and everything that serving it needs",
    "run": "the training run: settings, curves, checkpoints",
}


def demo(out: Path, axes: str = "HW") -> None:
    """Generate data, train, export, evaluate, serve and compare. All files are written to `out`.

    `axes`: a key of DEMOS.
    Raises: DataError if `out` contains other files; ParityError if the service's labels differ from this process's; ConfigError.
    """
    if axes not in DEMOS:
        raise ConfigError(f"--axes {quoted(axes)} is unknown; choose HW for images, T for signals or DHW for volumes.")
    steps, console = DEMOS[axes], Console()
    start = time.monotonic()

    def print_line(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    def print_step(title: str) -> None:
        print_line(f"\n[bold cyan]{time.monotonic() - start:4.0f} s[/]  [bold]{title}[/]")

    prepare_output_folder(out)
    data, run, bundle = out / steps.data, out / "run", out / "bundle"
    print_step(f"Generate the {data.name} data set")
    steps.generate(data)
    print_step(f"Train {steps.network}, from scratch")
    if not has_bf16():
        print_line("This CPU has no bfloat16 instructions: training takes two to four times as long as with them.")
    train(data, run, load_config(CONFIG_FOLDER / steps.config, []), console=console)
    print_step("Export a bundle, and compare it with the trained network")
    export(run, bundle, console=console)
    print_step("Evaluate the bundle on the test split")
    metrics = evaluate(bundle, data, "test", out, console=console)
    print_step(f"Serve it, and request {steps.request}")
    steps.check_service(bundle, data, out, console)

    print_step("Done")
    for name, description in (steps.files | OUTPUT_FILES).items():
        print_line(f"  {out / name!s:28} {description.replace('images', AXES[axes])}")
    reached = (
        f"Dice {metrics.volumes.dice:.3f}" if metrics.volumes and metrics.volumes.dice else f"mIoU {metrics.miou:.3f}"
    )
    print_line(f"\ntest {reached}. Next:")
    print_line(f"  .venv/bin/maskserve serve {bundle}")
    print_line(f"  {steps.next.format(out=out, data=data, bundle=bundle)}")


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
    equal = check_agreement(mask.labels, expected, "mask equals", "pixels")
    matrix = ConfusionMatrix(len(samples.classes))
    matrix.add(samples.labels(0), mask.labels)
    console.print(
        f"mask received in {milliseconds:.0f} ms; {equal:.2%} of its pixels equal those of this process, "
        f"{matrix.pixel_accuracy():.2%} the ground truth; {len(np.unique(mask.labels))} classes occur",
        highlight=False,
        soft_wrap=True,
    )


def check_agreement(labels: Labels, expected: Labels, equals: str, unit: str) -> float:
    """The fraction of the service's labels that equal this process's. `equals`, `unit`: for the message. Raises: ParityError."""
    equal = agreement(labels, expected)
    if equal < MIN_SERVICE_AGREEMENT:
        raise ParityError(
            f"The service's {equals} this process's on {equal:.2%} of the {unit}; expected at least "
            f"{MIN_SERVICE_AGREEMENT:.1%}. This is an error in maskserve: report it."
        )
    return equal


def check_signal_parity(bundle: Path, data: Path, out: Path, console: Console) -> None:
    """Post a test recording to a running service; compare its labels with this process's and with the ground truth.

    Writes record.hea, record.dat and events.json to `out`. Raises: ParityError.
    """
    samples = load_split(data, "test")
    source = samples.pairs[0].image
    header = source.read_text().replace(source.stem, "record")
    (out / "record.hea").write_text(header)
    shutil.copy(source.with_suffix(".dat"), out / "record.dat")
    with background_server(bundle) as url, Client(url) as client:
        console.print(f"service ready at {url}", highlight=False, soft_wrap=True)
        mask = client.segment_signal(out / "record.hea")
        start = time.perf_counter()
        client.segment_signal(out / "record.hea")
        milliseconds = (time.perf_counter() - start) * 1000
        events = client.segment_bytes(out / "record.hea", "events")
    (out / "events.json").write_bytes(events)
    segmenter = Segmenter.load(open_bundle(bundle))
    expected = segment_signal(segmenter, read_input_file(out / "record.hea", segmenter.rule)).labels
    equal = check_agreement(mask.labels, expected, "labels equal", "time steps")
    matrix = ConfusionMatrix(len(samples.classes))
    matrix.add(samples.labels(0), mask.labels)
    console.print(
        f"{len(mask.events)} events received in {milliseconds:.0f} ms; {equal:.2%} of the labels equal those of this process, "
        f"{matrix.pixel_accuracy():.2%} the ground truth",
        highlight=False,
        soft_wrap=True,
    )


def check_volume_parity(bundle: Path, data: Path, out: Path, console: Console) -> None:
    """Post a test volume to a running service; compare its labels with this process's and with the ground truth.

    Writes case.nii.gz and labels.nii.gz to `out`. Raises: ParityError.
    """
    samples = load_split(data, "test")
    shutil.copy(samples.pairs[0].image, out / "case.nii.gz")
    with background_server(bundle) as url, Client(url) as client:
        console.print(f"service ready at {url}", highlight=False, soft_wrap=True)
        client.segment_volume(out / "case.nii.gz")
        start = time.perf_counter()
        mask = client.segment_volume(out / "case.nii.gz")
        milliseconds = (time.perf_counter() - start) * 1000
    mask.save(out / "labels.nii.gz")
    labels = read_sample((out / "labels.nii.gz").read_bytes(), axes="DHW").values[..., 0]
    segmenter = Segmenter.load(open_bundle(bundle))
    expected = segment_volume(segmenter, read_input_file(out / "case.nii.gz", segmenter.rule)).labels
    equal = check_agreement(labels, expected, "labels equal", "voxels")
    matrix = ConfusionMatrix(len(samples.classes))
    matrix.add(samples.record_and_labels(0)[1], labels)
    console.print(
        f"labels received in {milliseconds:.0f} ms; {equal:.2%} of the voxels equal those of this process, "
        f"{matrix.pixel_accuracy():.2%} the ground truth",
        highlight=False,
        soft_wrap=True,
    )


@dataclass(frozen=True)
class DemoSteps:
    """What differs between the demos of images, signals and volumes."""

    data: str  # the folder of the data set
    generate: Callable[[Path], None]
    network: str
    config: str  # in CONFIG_FOLDER
    request: str  # what is asked for over HTTP
    check_service: Callable[[Path, Path, Path, Console], None]
    files: dict[str, str]  # that `check_service` writes, with their descriptions
    next: str  # a command to try next


DEMOS = {
    "HW": DemoSteps(
        data="shapes",
        generate=generate_dataset,
        network="an FCN-8s on a ResNet-18",
        config="demo.yaml",
        request="the mask of a test image",
        check_service=check_service_parity,
        files={
            "image.jpg": "a test image",
            "mask.png": "its mask, from the service",
            "overlay.png": "the mask over the image",
        },
        next="curl -F image=@{out}/image.jpg 'http://127.0.0.1:3000/v1/segment' -o mask.png",
    ),
    "T": DemoSteps(
        data="waves",
        generate=generate_signals,
        network="a U-Net",
        config="demo_signals.yaml",
        request="the events of a test recording",
        check_service=check_signal_parity,
        files={
            "record.hea": "a test recording, with record.dat",
            "events.json": "its events, from the service",
        },
        next=".venv/bin/maskserve predict {bundle} {data} --out events",
    ),
    "DHW": DemoSteps(
        data="objects",
        generate=generate_volumes,
        network="a U-Net",
        config="demo_volumes.yaml",
        request="the labels of a test volume",
        check_service=check_volume_parity,
        files={
            "case.nii.gz": "a test volume",
            "labels.nii.gz": "its labels, from the service, on the same grid",
        },
        next="curl --data-binary @{out}/case.nii.gz 'http://127.0.0.1:3000/v1/segment' -o labels.nii.gz",
    ),
}
