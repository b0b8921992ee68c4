"""Freeze a run into a bundle: `maskserve export RUN`; several runs into a bundle of the mean of their logits.

The best network becomes an ONNX graph. The frozen graph and the PyTorch network predict real images of several odd sizes,
both through the Segmenter; if they disagree, export writes nothing (`training/freezing/bundle_writer.py`). An int8 graph
is made from the frozen one and kept if it costs next to no accuracy.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.analysis.complexity import count_gflops, count_parameters
from models.architectures.base import Network
from models.architectures.ensemble import combine
from models.atomic_write import check_writable
from models.bundle import INT8_MODEL_FILE, INT8_WEIGHTS_FILE, Bundle
from models.console import Console
from models.errors import BundleError, ConfigError, DataError, EngineError, RunError, printable
from models.imaging.decode import Labels
from models.inference.segmenter import Segmenter
from models.spec import BundleSpec, Calibration, InputRule, Int8Metrics
from training.config import TrainConfig
from training.config_io import load_config, postprocess_rules
from training.data import SegmentationDataset, load_splits
from training.data.scan.sample_stats import content_digest, describe_changes
from training.data.scan.scanner import scan_splits
from training.engine.model_factory import load_network, make_torch_segmenter
from training.evaluate import evaluate_split
from training.freezing.bundle_writer import NUM_PROBES, BundleSource, check_bundle_name, creation_info, write_bundle
from training.freezing.calibration import fit_calibration, middle_canvas, parse_classes
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
    f1_thresholds: str | None = None, temperature: bool = False, members: Sequence[Path] = (),
) -> Path:  # fmt: skip
    """Freeze the best network of a run into a bundle at `out` (default: `RUN/bundle`); returns its folder.

    `input_rule` overrides the run's: `native`, `fit`, or `fit:SIDE` with the long side in pixels. `int8_limit` is how many
    points of validation mIoU int8 may lose; None makes no int8 graph. `name` is that of the model in the service (default: that
    of the data set). `data`: the data set, if it has moved since training. `f1_thresholds`: classes, `all` or names with commas,
    whose threshold is chosen for the best F1 on the validation split; `temperature`: fit it there as well
    (`training/freezing/calibration.py`).
    `members`: further runs, for a bundle of the mean of all logits; its data is that of `run`.
    Raises: RunError, DataError, ConfigError, BundleError, WeightsError; ParityError, with nothing written, if the frozen
    network disagrees with the PyTorch one.
    """
    console, target = console or Console(), out or run / "bundle"
    chosen_name = None if name is None else check_bundle_name(name)
    try:
        check_writable(target.parent)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error.strerror}); name another folder with --out.") from error
    network = load_ensemble([run, *members], console) if members else load_network(run)
    check_disk_space(target, network)
    config, metadata = load_config(run / CONFIG_FILE, []), read_run_metadata(run)
    if f1_thresholds is not None:
        parse_classes(f1_thresholds, metadata.classes)
    training, validation, changes = load_training_data(run, data or metadata.data, metadata, config, console)
    changes += other_training_images(run, members, console)
    training, validation = (replace(dataset, input=metadata.input) for dataset in (training, validation))
    rule = parse_input_rule(input_rule, metadata.input)
    if rule.axes == "HW":
        images = make_parity_images(validation.image, len(validation))
    else:
        images = make_parity_samples(validation.image, len(validation), rule.axes)
    calibration = None
    if f1_thresholds is not None or temperature:
        with console.status("fitting thresholds and temperature on validation images"):
            calibration = fit_calibration(network, rule, validation, f1_thresholds, temperature)
        network.set_calibration(calibration, metadata.classes)
        print_calibration(calibration, console)
    spec = BundleSpec(
        name=chosen_name or default_name(target if members else metadata.data),
        classes=metadata.classes,
        input=rule,
        architecture=network.architecture,
        calibration=calibration,
        postprocess=postprocess_rules(config, metadata.classes, rule.axes),
        provenance={
            **creation_info("torch", "segmentation-models-pytorch", "openvino", "onnx"),
            "data": printable(metadata.data.name),
            "config": {**config.model_dump(mode="json"), "weights": Path(config.weights).name},
            **({"members": [printable(each.name) for each in (run, *members)]} if members else {}),
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


def load_ensemble(runs: Sequence[Path], console: Console) -> Network:
    """The ensemble of the best networks of several runs; prints its cost. Raises: RunError that names a run that does not fit."""
    networks, first = [load_network(run) for run in runs], read_run_metadata(runs[0])
    for run in runs[1:]:
        other = read_run_metadata(run)
        for what, expected, found in (
            ("classes are", *(", ".join(entry.name for entry in each.classes) for each in (first, other))),
            ("input rule is", *(describe_input(each.input) for each in (first, other))),
            ("run.json has", *(f"{each.input} and {each.classes}" for each in (first, other))),  # scaling, colors
        ):
            if expected != found:
                raise RunError(f"{run} cannot be in one bundle with {runs[0]}: its {what} {found}, not {expected}.")
    try:
        ensemble = combine(networks)
    except ValueError as error:
        raise RunError(
            f"{runs[error.args[0]]} cannot be in one bundle with {runs[0]}: its encoder expects images to be normalised otherwise."
        ) from error
    one, together = (count_gflops(each, first.crop) for each in (networks[0], ensemble))
    console.print(
        f"Ensemble of {len(runs)} networks: {count_parameters(ensemble) / 1e6:.1f} M parameters, {together:.3g} GFLOP for "
        f"{' x '.join(map(str, reversed(first.crop)))}, {together / one:.1f} times those of {runs[0]}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    return ensemble


def describe_input(rule: InputRule) -> str:
    """Such as "fit:320, 3 channels of uint8 (red, green, blue)"."""
    return f"{rule.rule}{f':{rule.side}' if rule.side else ''}, {rule.describe()}"


def other_training_images(run: Path, members: Sequence[Path], console: Console) -> list[str]:
    """A warning, which it prints, if members were trained on other images than the run, as those of a cross-validation are."""
    images = read_run_metadata(run).images
    others = [member.name for member in members if read_run_metadata(member).images.sha256 != images.sha256]
    if not others:
        return []
    warning = (
        f"{', '.join(others)}: trained on other images than {run.name}, maybe on its validation images. Validation mIoU, "
        "thresholds and temperature are then too optimistic; evaluate on a test split."
    )
    console.print("Warning:", warning, highlight=False, markup=False, soft_wrap=True)
    return [warning]


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


def default_name(path: Path) -> str:
    """The name of a data set, or of an ensemble's folder (of its parent if that is called bundle)."""
    path = path.resolve()
    if path.name == "bundle":
        return printable(path.parent.name)
    return printable(path.stem if path.is_file() else path.name)


def print_calibration(calibration: Calibration, console: Console) -> None:
    """Print what the validation images changed."""
    of = f"on {calibration.images} validation images"
    for name, bias in calibration.bias.items():
        console.print(f"{name}: {bias:+.2f} on its logit", highlight=False, markup=False)
    if calibration.f1:
        before, after = calibration.f1
        console.print(f"F1 {of}: {before:.4f} -> {after:.4f}", highlight=False)
    if calibration.ece:
        before, after = calibration.ece
        changed = (
            f"temperature {calibration.temperature:.3f}; calibration error (ECE) {of}: {before:.4f} -> {after:.4f}"
        )
        console.print(changed, highlight=False)


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
            canvases = ((middle_canvas(each.values, draft.spec.input), each.statistics) for each in samples)
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
