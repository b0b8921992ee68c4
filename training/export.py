"""Freeze a run into a bundle: `maskserve export RUN`.

The network becomes an ONNX graph. Before anything is written in its place, the frozen graph and the live network label
real images of several odd sizes, both through the Segmenter; where they disagree, export refuses. An int8 graph is made
from the frozen one and kept where it costs next to nothing. `training/freezing/onnx_export.py`, `training/freezing/parity.py` and
`training/freezing/quantise.py` hold these steps.
"""

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from models.bundle import INT8_MODEL_FILE, INT8_WEIGHTS_FILE, SPEC_FILE, Bundle, bundle_writer
from models.errors import BundleError, EngineError
from models.imaging.decode import RGB, Labels
from models.inference.geometry import network_input_size, resize_and_pad, resize_image
from models.inference.segmenter import TILE_SIZE, Segmenter
from models.spec import BundleSpec, ClassInfo, InputRule, Int8Metrics
from training.config import TrainConfig
from training.config_io import load_config
from training.data import SegmentationDataset, load_split
from training.engine.model_factory import load_network, make_torch_segmenter, read_run_metadata
from training.evaluate import evaluate_split
from training.freezing.onnx_export import creation_info, describe_bundle, export_network, parse_input_rule
from training.freezing.parity import (
    NUM_PROBES,
    make_parity_images,
    measure_parity,
    reference_segmenter,
    segment_all,
    worst_agreement,
    write_probes,
)
from training.freezing.quantise import MAX_MIOU_DROP, NUM_CALIBRATION_IMAGES, miou_drop_message, quantise
from training.metrics.confusion import ConfusionMatrix
from training.reports.plots import draw_panel

PARITY_ADVICE = "This is a fault of the exporter or the engine; please report it with the run's config.yaml."


def export(
    run: Path, out: Path | None = None, input_rule: str | None = None, int8_limit: float | None = MAX_MIOU_DROP,
    console: Console | None = None,
) -> Path:  # fmt: skip
    """Freeze the best network of a run into a bundle at `out` (default: `RUN/bundle`).

    `input` overrides the run's input rule: `native`, `fit`, or `fit:SIDE` with the long side in pixels. `int8_limit` is
    how many points of validation mIoU int8 may cost; None goes without int8.
    Raises: RunError, DataError, ConfigError, BundleError; ParityError, with nothing written, where frozen and live differ.
    """
    console = console or Console()
    network = load_network(run)
    config, facts = load_config(run / "config.yaml", []), read_run_metadata(run)
    classes = [ClassInfo(**entry) for entry in facts["classes"]]
    rule = parse_input_rule(input_rule, InputRule(**facts["input"]))
    samples = load_split(Path(facts["data"]), "val", config.format)
    images = make_parity_images(samples.image, len(samples))

    target = out or run / "bundle"
    with bundle_writer(target) as folder:
        with console.status("freezing the network"):
            export_network(network, folder)
        spec = BundleSpec(
            name=run.resolve().name,
            classes=classes,
            input=rule,
            architecture=network.architecture,
            provenance=provenance(config, facts),
        )
        draft = Bundle(folder, spec)
        with console.status("comparing frozen and live"):
            expected = segment_all(make_torch_segmenter(network, rule), images)
            spec = spec.model_copy(update={"parity": measure_parity(draft, images, expected, console, PARITY_ADVICE)})
        matrix, _ = evaluate_split(Segmenter.load(Bundle(folder, spec)), samples, console)
        if int8_limit is not None:
            training = load_split(Path(facts["data"]), "train", config.format)
            spec, matrix = add_int8(
                Bundle(folder, spec), matrix, training, samples, int8_limit, images, expected, console
            )
        spec = spec.model_copy(update={"metrics": {"val": matrix.summary(classes)}})
        write_probes(folder / "probes", reference_segmenter(draft), images, classes)
        write_report(folder / "report", Segmenter.load(Bundle(folder, spec)), samples, run)
        (folder / SPEC_FILE).write_text(spec.model_dump_json(indent=2) + "\n")
    console.print(f"{describe_bundle(target)}, validation mIoU {matrix.miou():.4f}", highlight=False, markup=False)
    return target


def add_int8(
    draft: Bundle, before: ConfusionMatrix, training: SegmentationDataset, validation: SegmentationDataset, limit: float,
    images: list[RGB], expected: list[Labels], console: Console,
) -> tuple[BundleSpec, ConfusionMatrix]:  # fmt: skip
    """Make the int8 graph, and take it away again where it loses more than `limit` points of mIoU.

    Returns: the spec, and the confusion matrix on the validation split, of what is served by default.
    """
    spec, files = draft.spec, [draft.folder / name for name in (INT8_MODEL_FILE, INT8_WEIGHTS_FILE)]
    chosen = training.evenly_spaced_indices(NUM_CALIBRATION_IMAGES)
    try:
        with console.status("calibrating int8 on training images"):
            quantise(
                draft.model_path, (calibration_input(training.image(index), spec.input) for index in chosen), files[0]
            )
        frozen = Segmenter.load(draft, "openvino", "int8", "cpu")
    except (BundleError, EngineError) as error:  # it can be done without
        console.print(f"no int8: {error}", highlight=False, markup=False, soft_wrap=True)
        return discard_int8(spec, before, files)
    after, _ = evaluate_split(frozen, validation, console)
    loss = miou_drop_message(before, after, spec.classes, limit)
    if loss is not None:
        console.print(loss, highlight=False, markup=False, soft_wrap=True)
        return discard_int8(spec, before, files)
    cost = Int8Metrics(miou=after.miou(), float_miou=before.miou(), calibration_images=len(chosen))
    console.print(
        f"int8: validation mIoU {after.miou():.4f}, and {before.miou():.4f} in float", highlight=False, soft_wrap=True
    )
    share = worst_agreement(lambda: frozen, "openvino", "int8", images, expected, console)
    shares = {**spec.parity, "openvino": {**spec.parity["openvino"], "int8": share}}
    return spec.model_copy(update={"int8": cost, "parity": shares}), after


def discard_int8(spec: BundleSpec, before: ConfusionMatrix, files: list[Path]) -> tuple[BundleSpec, ConfusionMatrix]:
    """The bundle as it was before int8 was tried."""
    for file in files:
        file.unlink(missing_ok=True)
    return spec, before


def calibration_input(image: RGB, rule: InputRule) -> RGB:
    """An image as the network meets it in service, RGB uint8 H x W x 3; of what goes by tiles, one from the middle."""
    size = network_input_size((image.shape[0], image.shape[1]), rule)
    fitted = resize_image(image, size)
    top, left = (max(0, side - TILE_SIZE) // 2 for side in size)
    middle = fitted[top : top + TILE_SIZE, left : left + TILE_SIZE]
    return resize_and_pad(middle, (middle.shape[0], middle.shape[1]))


def provenance(config: TrainConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """When, from what, and by which versions."""
    return {
        **creation_info("torch", "segmentation-models-pytorch", "openvino", "onnx"),
        "data": Path(facts["data"]).name,
        "config": {**config.model_dump(mode="json"), "weights": Path(config.weights).name},
    }


def write_report(folder: Path, segmenter: Segmenter, samples: SegmentationDataset, run: Path) -> None:
    """Some validation images with their truth and the frozen network's answer, and the training's curves."""
    folder.mkdir()
    for place in samples.evenly_spaced_indices(NUM_PROBES):
        image, truth = samples.image(place), samples.labels(place)
        sheet = draw_panel(
            image, truth, segmenter.segment(image).labels, samples.classes, Path(samples.pairs[place].name).name
        )
        sheet.save(folder / f"val_{place}.png")
    for name in ("curves.png", "metrics.csv"):  # the table is what report.html draws its curves from
        if (run / name).exists():
            shutil.copy(run / name, folder / name)
