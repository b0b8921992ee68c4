"""Freeze a run into a bundle: `maskserve export RUN`, or `python -m training.export RUN`.

The network becomes an ONNX graph. Before anything is written in its place, the frozen graph and the live network label
real pictures of several odd sizes, both through the Segmenter; where they disagree, export refuses.
`training/freeze.py` holds those steps.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from safetensors.torch import save_file

from models.bundle import MODEL, SPEC, WEIGHTS, Bundle, writing
from models.segmenter import Segmenter
from models.spec import ClassInfo, InputRule, Spec
from training.config import TrainConfig, load_config
from training.data import Samples, load
from training.evaluate import measure
from training.freeze import PROBES, choose_rule, describe, freeze, made_by, parity, parity_pictures, write_probes
from training.network import live, load_network, read_run
from training.report import panel

ADVICE = "This is a fault of the exporter or the engine; please report it with the run's config.yaml."


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
    pictures = parity_pictures(samples.picture, len(samples))

    target = out or run / "bundle"
    with writing(target) as folder:
        with console.status("freezing the network"):
            freeze(network, folder / MODEL)
            save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS)
        spec = Spec(
            name=run.resolve().name,
            classes=classes,
            input=rule,
            architecture=network.architecture,
            provenance=provenance(config, facts),
        )
        draft = Bundle(folder, spec, hash="")
        with console.status("comparing frozen and live"):
            spec = spec.model_copy(update={"parity": parity(draft, live(network, rule), pictures, console, ADVICE)})
        frozen = Segmenter.load(Bundle(folder, spec, hash=""))
        matrix, _ = measure(frozen, samples, console)
        spec = spec.model_copy(update={"metrics": {"val": matrix.summary(classes)}})
        write_probes(folder / "probes", Segmenter.load(draft, precision="f32"), pictures, classes)
        write_report(folder / "report", frozen, samples, run)
        (folder / SPEC).write_text(spec.model_dump_json(indent=2) + "\n")
    console.print(f"{describe(target)}, validation mIoU {matrix.miou():.4f}", highlight=False, markup=False)
    return target


def provenance(config: TrainConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """When, from what, and by which versions."""
    return {
        **made_by("torch", "segmentation-models-pytorch", "openvino", "onnx"),
        "data": Path(facts["data"]).name,
        "config": {**config.model_dump(mode="json"), "weights": Path(config.weights).name},
    }


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
