"""Freeze a run into a bundle: `maskserve export RUN`, or `python -m training.export RUN`.

The network becomes an ONNX graph. Before anything is written in its place, the frozen graph and the live network label
real pictures of several odd sizes, both through the Segmenter; where they disagree, export refuses.
"""

import datetime
import logging
import platform
import shutil
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from models.architectures.network import Network
from models.bundle import MODEL, SPEC, WEIGHTS, Bundle, open_bundle, writing
from models.engines.openvino import BF16_AGREEMENT, has_bf16
from models.errors import ConfigError, ParityError
from models.image import RGB
from models.outputs.png import indexed
from models.segmenter import Segmenter, agreement, resize_picture
from models.spec import Architecture, ClassInfo, InputRule, Spec
from training.config import TrainConfig, load_config
from training.data import Samples, load
from training.evaluate import measure
from training.report import panel
from training.train import architecture_options, live, load_network, read_run

F32_AGREEMENT = 0.999
PROBES = 3
# (height, width) of the parity pictures as shares of a real picture's: odd sizes, both formats, one enlarged.
ODD_SIZES = ((1.0, 1.0), (0.61, 0.97), (0.93, 0.43), (0.37, 0.31), (1.51, 1.23))


def export(run: Path, out: Path | None = None, input: str | None = None, console: Console | None = None) -> Path:
    """Freeze the best network of a run into a bundle at `out` (default: `RUN/bundle`).

    `input` overrides the run's input rule: `native`, `fit`, or `fit:SIDE` with the long side in pixels.
    Raises: RunError, DataError, ConfigError, BundleError; ParityError, with nothing written, where frozen and live differ.
    """
    console = console or Console()
    network = load_network(run)
    config, facts = load_config(run / "config.yaml", []), read_run(run)
    classes = [ClassInfo(**entry) for entry in facts["classes"]]
    rule = choose_rule(input, InputRule(**facts["input"]))
    samples = load(Path(facts["data"]), "val", config.format)
    pictures = parity_pictures(samples)

    target = out or run / "bundle"
    with writing(target) as folder:
        with console.status("freezing the network"):
            freeze(network, folder / MODEL)
            save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS)
        spec = Spec(
            name=run.resolve().name,
            classes=classes,
            input=rule,
            architecture=Architecture(name=config.architecture, options=architecture_options(config)),
            provenance=provenance(config, facts),
        )
        draft = Bundle(folder, spec, hash="")
        with console.status("comparing frozen and live"):
            spec = spec.model_copy(update={"parity": parity(draft, live(network, rule), pictures, console)})
        frozen = Segmenter.load(Bundle(folder, spec, hash=""))
        matrix, _ = measure(frozen, samples, console)
        spec = spec.model_copy(update={"metrics": {"val": matrix.summary(classes)}})
        write_probes(folder / "probes", Segmenter.load(draft, precision="f32"), pictures[:PROBES], classes)
        write_report(folder / "report", frozen, samples, run)
        (folder / SPEC).write_text(spec.model_dump_json(indent=2) + "\n")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    console.print(
        f"{target}: {size / 1e6:.1f} MB, {open_bundle(target).hash[:12]}, validation mIoU {matrix.miou():.4f}",
        highlight=False,
    )
    return target


def freeze(network: Network, target: Path) -> None:
    """Write the network as one ONNX file with any N, H, W.

    An example batch of 1 would pin the batch, and sizes below 16 specialise the upsampling.
    """
    any_size = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 128, 192, 3, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecated calls
        torch.onnx.export(
            network,
            (example,),
            target,
            dynamo=True,
            input_names=["images"],
            output_names=["labels", "logits"],
            dynamic_shapes={"images": {0: any_size, 1: any_size, 2: any_size}},
            external_data=False,
            verbose=False,
        )
    onnx.checker.check_model(target)


def parity_pictures(samples: Samples) -> list[RGB]:
    """Real pictures of the split, resized to odd sizes."""
    pictures = []
    for place, (high, wide) in enumerate(ODD_SIZES):
        picture = samples.picture(place * len(samples) // len(ODD_SIZES))
        size = (max(1, int(picture.shape[0] * high) | 1), max(1, int(picture.shape[1] * wide) | 1))
        pictures.append(resize_picture(picture, size))
    return pictures


def parity(draft: Bundle, live_one: Segmenter, pictures: list[RGB], console: Console) -> dict[str, float]:
    """The share of pixels on which the frozen network equals the live one, by precision. Raises: ParityError."""
    expected = [live_one.segment(picture).labels for picture in pictures]
    shares = {}
    for precision in ("f32", "bf16") if has_bf16() else ("f32",):
        frozen = Segmenter.load(draft, precision=precision)
        equal = [
            agreement(frozen.segment(picture).labels, truth) for picture, truth in zip(pictures, expected, strict=True)
        ]
        shares[precision] = min(equal)  # the worst picture: each probe will be asked alone
        verdict = (
            "" if precision == "f32" or shares[precision] >= BF16_AGREEMENT else f" < {BF16_AGREEMENT:.1%}: not used"
        )
        console.print(
            f"parity {precision}: at least {shares[precision]:.4%} of a picture's labels are the live network's{verdict}",
            highlight=False,
        )
    if shares["f32"] < F32_AGREEMENT:
        raise ParityError(
            f"The frozen network gives {shares['f32']:.3%} of the pixels the live one's label; {F32_AGREEMENT:.1%} is wanted: "
            "nothing was written. This is a fault of the exporter or the engine; please report it with the run's config.yaml."
        )
    return shares


def choose_rule(wish: str | None, trained: InputRule) -> InputRule:
    """The input rule that was asked for, or else the training's. Raises: ConfigError."""
    if wish is None:
        return trained
    if wish == "native":
        return InputRule(rule="native")
    name, _, side = wish.partition(":")
    if name != "fit" or (side and not (side.isdigit() and int(side) >= 16)) or not (side or trained.side):
        raise ConfigError(
            f"The input rule {wish!r} is not possible; choose native, fit (trained so), or fit:SIDE with 16 pixels or more."
        )
    return InputRule(rule="fit", side=int(side) if side else trained.side)


def provenance(config: TrainConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """When, from what, and by which versions."""
    packages = ("torch", "segmentation-models-pytorch", "openvino", "onnx")
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": Path(facts["data"]).name,
        "config": config.model_dump(mode="json"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def write_probes(folder: Path, segmenter: Segmenter, pictures: list[RGB], classes: list[ClassInfo]) -> None:
    """Lossless pictures with the labels that this network gives them in float32."""
    folder.mkdir()
    for place, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{place}.png")
        indexed(segmenter.segment(picture).labels, classes).save(folder / f"{place}.labels.png")


def write_report(folder: Path, segmenter: Segmenter, samples: Samples, run: Path) -> None:
    """Some validation pictures with their truth and the frozen network's answer, and the training's curves."""
    folder.mkdir()
    for place in np.unique(np.linspace(0, len(samples) - 1, PROBES).astype(int)).tolist():
        picture, truth = samples.picture(place), samples.labels(place)
        sheet = panel(
            picture, truth, segmenter.segment(picture).labels, samples.classes, Path(samples.pairs[place].name).name
        )
        sheet.save(folder / f"val_{place}.png")
    if (run / "curves.png").exists():
        shutil.copy(run / "curves.png", folder / "curves.png")


if __name__ == "__main__":
    from maskserve.cli import main  # the script's words are the verb's

    main("export")
