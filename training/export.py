"""Freeze a run into a bundle: `maskserve export RUN`.

The best network becomes an ONNX graph. The frozen graph and the PyTorch network predict real images of several odd sizes,
both through the Segmenter; if they disagree, export writes nothing (`training/freezing/bundle_writer.py`). An int8 graph
is made from the frozen one and kept if it costs next to no accuracy.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from models.analysis.complexity import count_parameters
from models.architectures.base import Network
from models.atomic_write import check_writable
from models.bundle import INT8_MODEL_FILE, INT8_WEIGHTS_FILE, Bundle
from models.console import Console
from models.errors import BundleError, ConfigError, DataError, EngineError, RunError, printable
from models.imaging.decode import Labels
from models.inference.geometry import Image, canvas_size, network_input_size, resize_and_pad, resize_image
from models.inference.segmenter import TILE_SIZE, Segmenter
from models.inference.windows import MAX_WINDOW, extract_window, make_lattice
from models.spec import BundleSpec, InputRule, Int8Metrics
from training.config import TrainConfig
from training.config_io import load_config, postprocess_rules
from training.data import SegmentationDataset, load_splits
from training.data.scan.sample_stats import content_digest, describe_changes
from training.data.scan.scanner import scan_splits
from training.engine.model_factory import load_network, make_torch_segmenter
from training.evaluate import evaluate_split
from training.freezing.bundle_writer import NUM_PROBES, BundleSource, check_bundle_name, creation_info, write_bundle
from training.freezing.input_rule import parse_input_rule
from training.freezing.onnx_export import export_network
from training.freezing.parity import make_parity_images, make_parity_samples, worst_agreement
from training.freezing.quantise import MAX_MIOU_DROP, NUM_CALIBRATION_IMAGES, miou_drop_message, quantise
from training.metrics.confusion import ConfusionMatrix
from training.reports.progress_bar import progress_bar
from training.reports.samples import draw_sample
from training.run_folder import BEST_CHECKPOINT, CONFIG_FILE, METRICS_CSV, RunMetadata, read_run_metadata

PARITY_ADVICE = "This is a bug of the exporter or the engine; please report it with the run's config.yaml."


def export(
    run: Path, out: Path | None = None, input_rule: str | None = None, int8_limit: float | None = MAX_MIOU_DROP,
    console: Console | None = None, name: str | None = None, data: Path | None = None,
) -> Path:  # fmt: skip
    """Freeze the best network of a run into a bundle at `out` (default: `RUN/bundle`); returns its folder.

    `input_rule` overrides the run's: `native`, `fit`, or `fit:SIDE` with the long side in pixels. `int8_limit` is how many
    points of validation mIoU int8 may lose; None makes no int8 graph. `name` is that of the model in the service (default: that
    of the data set). `data`: the data set, if it has moved since training.
    Raises: RunError, DataError, ConfigError, BundleError, WeightsError; ParityError, with nothing written, if the frozen
    network disagrees with the PyTorch one.
    """
    console, target = console or Console(), out or run / "bundle"
    chosen_name = None if name is None else check_bundle_name(name)
    try:
        check_writable(target.parent)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error.strerror}); name another folder with --out.") from error
    network = load_network(run)
    check_disk_space(target, network)
    config, metadata = load_config(run / CONFIG_FILE, []), read_run_metadata(run)
    training, validation, changes = load_training_data(run, data or metadata.data, metadata, config, console)
    training, validation = (replace(dataset, input=metadata.input) for dataset in (training, validation))
    rule = parse_input_rule(input_rule, metadata.input)
    if rule.axes == "HW":
        images = make_parity_images(validation.image, len(validation))
    else:
        images = make_parity_samples(validation.image, len(validation), rule.axes)
    spec = BundleSpec(
        name=chosen_name or printable(metadata.data.stem if metadata.data.is_file() else metadata.data.name),
        classes=metadata.classes,
        input=rule,
        architecture=network.architecture,
        postprocess=postprocess_rules(config, metadata.classes, rule.axes),
        provenance={
            **creation_info("torch", "segmentation-models-pytorch", "openvino", "onnx"),
            "data": printable(metadata.data.name),
            "config": {**config.model_dump(mode="json"), "weights": Path(config.weights).name},
            "warnings": [*(metadata.end.warnings if metadata.end else []), *changes],  # of the training
        },
    )

    def complete(draft: Bundle, expected: list[Labels]) -> BundleSpec:
        """Add int8, the validation metrics of what is served by default, and the report."""
        matrix, _ = evaluate_split(Segmenter.load(draft), validation, console)
        if int8_limit is not None:
            quantised = add_int8(draft, matrix, training, validation, int8_limit, console)
            if quantised:
                segmenter, matrix, int8 = quantised
                worst = worst_agreement(segmenter, "openvino", "int8", images, expected, console)
                parity = {**draft.spec.parity, "openvino": {**draft.spec.parity["openvino"], "int8": worst}}
                draft = Bundle(draft.folder, draft.spec.model_copy(update={"int8": int8, "parity": parity}))
        console.print(f"Validation mIoU {matrix.miou():.4f}", highlight=False)
        write_report(draft.folder / "report", Segmenter.load(draft), validation, run)
        return draft.spec.model_copy(update={"metrics": {"val": matrix.summary(metadata.classes)}})

    source = BundleSource(
        origin=run / BEST_CHECKPOINT,
        spec=spec,
        write_graph=lambda folder: export_network(network, folder),
        original=make_torch_segmenter(network, rule),
        images=images,
        parity_advice=PARITY_ADVICE,
        complete=complete,
    )
    write_bundle(target, source, console)
    return target


def load_training_data(
    run: Path, data: Path, metadata: RunMetadata, config: TrainConfig, console: Console
) -> tuple[SegmentationDataset, SegmentationDataset, list[str]]:
    """The train and val splits of the run's data set, and warnings that it prints: images that changed since the training.

    Raises: DataError if the data set is missing; RunError if it is another one.
    """
    if not data.exists():
        raise DataError(
            f"{data}, the data set of {run}, is missing. Bring it back, or name its new place: "
            f"`maskserve export {run} --data FOLDER`."
        )
    splits = load_splits(data, ("train", "val"), config.format)
    training, validation = splits["train"], splits["val"]
    metadata.check_images(run, data, training.classes, (pair.name for pair in training.pairs))
    warnings = []
    with progress_bar(console, "checking the images") as progress:
        scanned = scan_splits(splits, progress)  # reads only what has another size or time than the lint saw
    content = {split: content_digest(dataset, scanned[split]) for split, dataset in splits.items()}
    if changed := metadata.images.changed_splits(content):
        warnings.append(
            f"{describe_changes(data, changed, splits)}. The validation mIoU, the calibration of int8 and the probes are of "
            "the present files."
        )
        console.print("Warning:", warnings[0], highlight=False, markup=False, soft_wrap=True)
    return training, validation, warnings


def check_disk_space(target: Path, network: Network) -> None:
    """Raises: RunError if the disk has less space than the bundle may take."""
    folder = next(each for each in target.absolute().parents if each.exists())
    # The graph and weights.safetensors hold the weights in float32, the int8 graph a quarter; and a draft beside each.
    needed, free = 3 * 4 * count_parameters(network) + 10_000_000, shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"{target} cannot be written: it takes up to {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free. Free "
            "disk space, then export again."
        )


def add_int8(
    draft: Bundle, before: ConfusionMatrix, training: SegmentationDataset, validation: SegmentationDataset, limit: float,
    console: Console,
) -> tuple[Segmenter, ConfusionMatrix, Int8Metrics] | None:  # fmt: skip
    """Add the int8 graph to a draft, and remove it again if it loses more than `limit` points of mIoU.

    `before`: the confusion matrix of the float graph on the validation split.
    Returns: the int8 network, its confusion matrix and its entry in the spec; None if there is no int8, which it prints.
    """
    files = [draft.folder / name for name in (INT8_MODEL_FILE, INT8_WEIGHTS_FILE)]
    chosen = training.evenly_spaced_indices(NUM_CALIBRATION_IMAGES)
    try:
        with console.status("calibrating int8 on training images"):
            samples = map(training.sample, chosen)
            canvases = ((calibration_input(each.values, draft.spec.input), each.statistics) for each in samples)
            quantise(draft.model_path, canvases, files[0])
        segmenter = Segmenter.load(draft, "openvino", "int8", "cpu")
        after, _ = evaluate_split(segmenter, validation, console)
        rejection = miou_drop_message(before, after, draft.spec.classes, limit)
    except (BundleError, EngineError) as error:  # int8 is optional
        rejection = f"No int8 graph: {error}"
    if rejection is not None:
        console.print(rejection, highlight=False, markup=False, soft_wrap=True)
        for file in files:
            file.unlink(missing_ok=True)
        return None
    console.print(f"int8: validation mIoU {after.miou():.4f} (float {before.miou():.4f})", highlight=False)
    int8 = Int8Metrics(miou=after.miou(), float_miou=before.miou(), calibration_images=len(chosen))
    return segmenter, after, int8


def calibration_input(image: Image, rule: InputRule) -> Image:
    """A sample as the network gets it in the service, [*axes, C]; of one that takes several windows, one from the middle."""
    if rule.axes != "HW":
        sides = make_lattice(image.shape[:-1], rule, MAX_WINDOW[rule.axes]).sides
        starts = (max(0, length - side) // 2 for length, side in zip(image.shape, sides, strict=False))
        return extract_window(image, tuple(starts), sides)
    size = network_input_size((image.shape[0], image.shape[1]), rule)
    fitted = resize_image(image, size)
    top, left = (max(0, side - TILE_SIZE) // 2 for side in size)
    middle = fitted[top : top + TILE_SIZE, left : left + TILE_SIZE]
    middle_size = middle.shape[0], middle.shape[1]
    return resize_and_pad(middle, middle_size, canvas_size(middle_size, rule))


def write_report(folder: Path, segmenter: Segmenter, samples: SegmentationDataset, run: Path) -> None:
    """Write some validation images with ground truth and prediction, and copy the training curves."""
    folder.mkdir()
    for index in samples.evenly_spaced_indices(NUM_PROBES):
        sample, target = samples.sample_and_labels(index)
        prediction = segmenter.segment(sample).labels
        caption = Path(samples.pairs[index].name).name
        draw_sample(sample, target, prediction, samples.classes, caption, segmenter.rule).save(
            folder / f"val_{index}.png"
        )
    if (run / METRICS_CSV).exists():  # report.html draws its curves from it
        shutil.copy(run / METRICS_CSV, folder / METRICS_CSV)
