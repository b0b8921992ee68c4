"""Train a network on a data set: `maskserve train DATA`.

Reads from top to bottom: the data and its lint, the network, the trainer, and the files of the run folder:

    plan.yaml            without a config: the settings that follow from the data, with a reason each
    config.yaml          all settings of the run
    run.json             the data set, its classes, the input rule
    checkpoints/         best.ckpt (by the validation metric `monitor`) and last.ckpt
    metrics.csv          a row per validation
    curves.png           the same as charts
    kernels.npz          the first layer's kernels in the course of the training, for `maskserve explain`
    samples/             validation images with ground truth and prediction
    tensorboard/         for `tensorboard --logdir`: the same, and the confusion matrix

With more than one device torchrun starts this once per device, and they share each batch (`training/engine/runtime.py`).
"""

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from PIL import Image
from timm.layers.norm_act import convert_sync_batchnorm

from models.analysis.complexity import count_parameters
from models.architectures import build
from models.architectures.base import Network, use_channels_last
from models.console import Console
from models.errors import ConfigError, DataError, RunError, printable
from models.imaging.sandbox import enable_sandbox
from models.inference.geometry import network_input_size
from models.spec import AXES, InputRule
from training.augment import choose_augment_device
from training.augment.user_transforms import UserTransforms
from training.config import TrainConfig
from training.config_io import (
    check_no_run,
    check_resume_settings,
    check_run_exists,
    config_from_dict,
    finished_message,
    load_config,
    postprocess_rules,
    save_config,
)
from training.data import SegmentationDataset, load_split
from training.data.decoded_cache import (
    create_cache_folder,
    decoded_bytes,
    fits_on_disk,
    remove_cache_folder,
    removed_on_exit,
)
from training.data.loader import STRIDE, build_train_loader, build_val_loader
from training.data.scan.sample_stats import describe_changes
from training.engine.loggers import LogMode, ProgressLogger, TensorBoardWriter, TrainingLogger
from training.engine.losses import Criterion, compute_class_weights
from training.engine.model_factory import (
    architecture_options,
    check_batch_norm,
    deepest_stride,
    deepest_strides,
    find_weights_file,
    load_network,
    make_network,
    make_torch_segmenter,
)
from training.engine.runtime import (
    choose_device,
    choose_precision,
    deterministic_mode,
    launch_fabric,
    run_on_rank_zero,
    translate_errors,
)
from training.engine.schedule import TrainingDuration
from training.engine.trainer import Trainer
from training.lint import LintReport, lint_with_progress, print_lint_report
from training.metrics.confusion import ConfusionMatrix
from training.metrics.learning import learning_warnings
from training.metrics.monitor import check_monitor
from training.plan import make_plan
from training.plan.input_channels import apply_input, check_color_settings
from training.plan.plan_io import plan_warnings, print_plan, save_plan
from training.reports.plots import plot_confusion_matrix, save_curves
from training.reports.samples import draw_sample
from training.run_folder import (
    CONFIG_FILE,
    METRICS_CSV,
    EndSetting,
    ImageList,
    RunEnd,
    RunMetadata,
    lock_run,
    other_images_advice,
    read_run_metadata,
    write_run_metadata,
)

# Defaults for large photographs, so that a first training ends on a small machine; both are settings.
DEFAULT_MAX_SIDE, DEFAULT_MAX_CROP = 1024, 512
MAX_AXES_CROP, NUM_MEASURED = (
    {"T": 4096, "DHW": 64},
    16,
)  # time steps or voxels of an axis; samples that are read for it
NUM_SAMPLE_IMAGES = 4  # validation images drawn at the end


@dataclass(frozen=True)
class PlannedTraining:
    """A config that was planned for the data, and the lint report that it follows from."""

    config: TrainConfig
    report: LintReport
    expected_epochs: float = math.inf  # that a limit in minutes allows
    adapt_validation: bool = False  # whether `validate_every` may follow the pace


def train(
    data: Path,
    out: Path,
    config: TrainConfig,
    resume: bool = False,
    console: Console | None = None,
    log_mode: LogMode = "bar",
    planned: PlannedTraining | None = None,
    start_time: float | None = None,
) -> Path:
    """Train on the train split of `data`, validate on its val split, and write the run folder `out`.

    `resume` continues the run at `out` from its last checkpoint, as if it had not been stopped; `config` may differ from
    the run's only as `load_resume_config` allows. With `planned` the data is not linted again. `start_time`: when the
    minutes began to count, by the monotonic clock; default: now.
    Raises: DataError, ConfigError, RunError; KeyboardInterrupt after Ctrl-C, with the step in progress saved.
    """
    start_time = time.monotonic() if start_time is None else start_time
    device = choose_device(config)
    fabric = launch_fabric(config, device)
    console = (console or Console()) if fabric.is_global_zero else Console(quiet=True)
    with ExitStack() as lock:
        run_on_rank_zero(fabric, lambda: lock.enter_context(lock_run(out)))
        train_locked(fabric, data, out, config, resume, console, log_mode, planned, start_time)
    return out


def train_locked(
    fabric: Fabric, data: Path, out: Path, config: TrainConfig, resume: bool, console: Console, log_mode: LogMode,
    planned: PlannedTraining | None, start_time: float,
) -> None:  # fmt: skip
    """`train`, while the run folder is locked."""
    if config.sandbox:
        enable_sandbox()
    device = fabric.device.type
    run, report = run_on_rank_zero(
        fabric,
        lambda: (
            resume_run(data, out, config, console) if resume else start_run(data, out, config, device, planned, console)
        ),
    )
    train_set, val_set = (replace(report.datasets[split], input=run.input) for split in ("train", "val"))

    network = prepare_network(fabric, config, run, console, load_weights=not resume)
    console.print(
        f"{describe_network(network, config)}; {len(train_set)} {AXES[run.input.axes]} to train on, {len(val_set)} to validate; "
        f"crops of {' x '.join(map(str, reversed(run.crop)))}; {run.precision} on {device}"
        + f" x {config.devices}" * (config.devices > 1),
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    pixel_counts = report.pixel_counts["train"][: len(train_set.classes)]
    criterion = Criterion.from_config(config, compute_class_weights(config.class_weights, pixel_counts))
    duration = TrainingDuration(len(train_set), len(val_set), config)

    cache = run_on_rank_zero(fabric, lambda: prepare_decoded_cache(out, config, report, run.input, console))
    own_cache = cache if fabric.is_global_zero else None
    with translate_errors(config, run.crop), deterministic_mode(config.deterministic), removed_on_exit(own_cache):
        pace = (planned.expected_epochs, planned.adapt_validation) if planned else (math.inf, False)
        trainer = Trainer(fabric, config, run, network, criterion, duration, out, start_time, *pace)
        if resume:
            resume_trainer(trainer, load_config(out / CONFIG_FILE, []), console)
        if fabric.is_global_zero:
            save_config(config, out / CONFIG_FILE)
            write_run_metadata(run, out)
        shard = (fabric.global_rank, fabric.world_size)
        augment_on, start = (
            choose_augment_device(config.augment, device, run.input),
            trainer.state.step * config.accumulate,
        )
        train_loader = build_train_loader(train_set, run.input, run.crop, config, augment_on, start, shard, cache)
        val_loader = build_val_loader(val_set, run.input, config, shard, cache)
        with make_logger(trainer, val_set, console, log_mode) as logger:
            ended_by = trainer.fit(train_loader, val_loader, logger)

    if fabric.is_global_zero:
        write_run_metadata(run.model_copy(update={"end": describe_end(trainer, ended_by)}), out)
        save_curves(out / METRICS_CSV, out / "curves.png", config.monitor)
        (out / "samples").mkdir(exist_ok=True)
        for name, image in render_samples(load_network(out), run.input, val_set).items():
            image.save(out / "samples" / f"{name}.png")


def resume_trainer(trainer: Trainer, saved: TrainConfig, console: Console) -> None:
    """Load the last checkpoint, and say how a changed limit changes the learning rate.

    `saved`: the settings before this resume. Raises: RunError, also if nothing is left to train.
    """
    config, out = trainer.config, trainer.out
    if ended_by := trainer.resume():
        raise RunError(finished_message(out, describe_end(trainer, ended_by), ended_by, config))
    last, following = trainer.learning_rates()
    if config.limits() != saved.limits() and not 0.9 < following / max(last, 1e-12) < 1.1:
        ends = " or ".join(
            {"epochs": f"epoch {value:g}", "minutes": f"{value:g} minutes"}[name]
            for name, value in config.limits().items()
            if name != "patience"
        )
        console.print(
            f"The schedule now ends at {ends}: the learning rate {'rises' if following > last else 'falls'} from {last:.2g} "
            f"to {following:.2g}.",
            highlight=False,
            soft_wrap=True,
        )


def describe_end(trainer: Trainer, ended_by: EndSetting) -> RunEnd:
    """How far the run was trained, and what it failed to learn."""
    state, epochs = trainer.state, trainer.duration.epochs_done(trainer.state.step)
    minutes = state.elapsed_seconds() / 60
    confusion = trainer.best_confusion
    warnings = (
        []
        if confusion is None
        else learning_warnings(epochs, minutes, confusion.miou(), confusion, trainer.run.classes)
    )
    return RunEnd(
        setting=ended_by,
        epochs=round(epochs, 3),
        minutes=round(minutes, 3),
        warnings=warnings,
        monitor=trainer.config.monitor,
        score=round(state.best_score, 6),
    )


def start_run(
    data: Path, out: Path, config: TrainConfig, device: str, planned: PlannedTraining | None, console: Console
) -> tuple[RunMetadata, LintReport]:
    """Check the settings, then the data, and decide what both leave open. Raises: RunError, ConfigError, DataError."""
    check_no_run(out)
    check_model_settings(config)
    report = planned.report if planned else lint_before_training(data, config, console)
    train_set = report.datasets["train"]
    rule, crop = choose_resize_and_crop(config, report)
    run = RunMetadata(
        data=data.resolve(),
        classes=train_set.classes,
        input=rule,
        crop=crop,
        precision=choose_precision(config, device),
        images=ImageList.from_names((pair.name for pair in train_set.pairs), report.content_digests()),
    )
    return run, report


def resume_run(data: Path, out: Path, config: TrainConfig, console: Console) -> tuple[RunMetadata, LintReport]:
    """Read `run.json`, and check that data and settings are still those of the run. Raises: RunError, ConfigError."""
    check_run_exists(out)
    run = read_run_metadata(out)
    check_resume_settings(out, config)
    report = lint_before_training(data, config, console)
    train_set = report.datasets["train"]
    run.check_images(out, data, train_set.classes, (pair.name for pair in train_set.pairs))
    if changed := run.images.changed_splits(report.content_digests()):
        raise RunError(f"{describe_changes(data, changed, report.datasets)}. {other_images_advice(out)}")
    return run.model_copy(update={"data": data.resolve(), "end": None}), report


def plan_training(
    data: Path, file: Path | None, settings: dict[str, Any], console: Console, start_time: float | None = None
) -> PlannedTraining:
    """Plan a training from the data and this machine, print the plan, and write it to `file` as YAML.

    `settings` are kept as they are; `start_time` is that of `train`. Raises: DataError, ConfigError.
    """
    start_time, config = start_time or time.monotonic(), config_from_dict(settings)
    if config.sandbox:
        enable_sandbox()
    error_for_images = check_planned_model_settings(config, settings)
    report = lint_before_training(data, config, console)
    if error_for_images and report.axes == "HW":
        raise error_for_images
    check_color_settings(report.datasets["train"].input, settings)
    with console.status("timing training steps on this machine"):
        plan = make_plan(report, settings, file.parent if file else None, start_time)
    print_plan(plan, console)
    if file:
        save_plan(plan, file)
    for warning in plan_warnings(plan):
        console.print("Warning:", warning, highlight=False, markup=False, soft_wrap=True)
    return PlannedTraining(plan.config(), report, plan.expected_epochs, "validate_every" not in plan.overrides)


def lint_before_training(data: Path, config: TrainConfig, console: Console) -> LintReport:
    """Lint the data set. Raises: DataError if it has errors, because they would reach the loss."""
    checked = lint_with_progress(data, console, config.format, leads=config.leads, rate=config.rate)
    print_lint_report(checked, console)
    report = checked.select_splits(("train", "val"))  # nothing is planned from the test images
    if errors := len(checked.errors):
        raise DataError(
            f"{data} has {errors} error{'s' * (errors > 1)}. Fix them (`maskserve data lint {data}` lists all) and train again."
        )
    if "val" not in report.datasets:
        load_split(data, "val", config.format)  # raises an error that says what is missing
    classes = report.datasets["train"].classes
    check_monitor(config.monitor, classes, report.pixel_counts["val"][: len(classes)])
    postprocess_rules(config, classes, report.datasets["train"].axes)  # raises an error for an unknown class
    return apply_input(report, config, console)


def check_model_settings(config: TrainConfig) -> None:
    """Check the settings of network, weights and transforms before images are read. Raises: ConfigError, WeightsError."""
    build(config.architecture, 2, config.likely_axes(), **architecture_options(config))
    find_weights_file(config)
    UserTransforms(config.transforms).check()


def check_planned_model_settings(config: TrainConfig, settings: dict[str, Any]) -> ConfigError | None:
    """As `check_model_settings`, before a plan has chosen the architecture: for signals and volumes that is the U-Net.

    Returns: an error that holds for images only. Raises: ConfigError, WeightsError.
    """
    try:
        check_model_settings(config)
    except ConfigError as error:
        if "architecture" in settings:
            raise
        try:
            check_model_settings(config.model_copy(update={"architecture": "unet"}))
        except ConfigError:
            raise error from None
        return error
    return None


def prepare_network(
    fabric: Fabric, config: TrainConfig, run: RunMetadata, console: Console, load_weights: bool
) -> Network:
    """Seed everything, and build the network for this device. Raises: ConfigError, WeightsError."""
    fabric.seed_everything(config.seed, verbose=False)
    network = make_network(config, run.classes, console, load_weights, run.input)
    check_batch_norm(network, max(1, config.batch // config.devices), run.crop)
    use_channels_last(network, run.input.axes)
    if fabric.device.type == "cuda" and fabric.world_size > 1:
        # timm's, because torch's own drops the activations inside timm's norm layers.
        network = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return network


def choose_resize_and_crop(config: TrainConfig, report: LintReport) -> tuple[InputRule, tuple[int, ...]]:
    """The input rule and the training crop, one length per axis: as set, or from the median size of the training images."""
    train_set = report.datasets.get("train")
    rule = (train_set.input if train_set else None) or InputRule(rule="native")
    config.check_axes(rule.axes)
    if rule.axes != "HW":
        rule = rule.model_copy(update={"divisor": deepest_stride(config)})
        crop = config.crop or choose_axes_crop(report.datasets["train"], rule)
        strides = deepest_strides(config)[: len(crop)]
        if any(length % stride for length, stride in zip(crop, strides, strict=False)):
            raise ConfigError(
                f"crop={','.join(map(str, crop))} is not possible: its lengths must be multiples of "
                f"{','.join(map(str, strides))}, the deepest strides of the network."
            )
        if config.norm == "instance":  # its statistics are those of the input, which must be as in training
            rule = InputRule.model_validate({**rule.model_dump(), "window": crop})
        return rule, crop
    height, width = (int(value) for value in np.median(np.array(report.train_image_sizes), axis=0))
    if config.input == "fit":
        side = config.side or min(max(height, width), DEFAULT_MAX_SIDE)
        rule = rule.model_copy(update={"rule": "fit", "side": side})
    if config.crop:
        return rule, config.crop
    resized = network_input_size((height, width), rule)
    sides = [min(max(STRIDE, round(side / STRIDE) * STRIDE), DEFAULT_MAX_CROP) for side in resized]
    return rule, (sides[0], sides[1])


def choose_axes_crop(train_set: SegmentationDataset, rule: InputRule) -> tuple[int, ...]:
    """The training crop of signals and volumes: the median length of some of them, at most MAX_AXES_CROP, by the divisor."""
    indices = train_set.evenly_spaced_indices(NUM_MEASURED)
    lengths = np.median([train_set.sample(index).size for index in indices], axis=0)
    longest = MAX_AXES_CROP[rule.axes]
    return tuple(min(max(1, round(length / rule.divisor)) * rule.divisor, longest) for length in lengths.tolist())


def prepare_decoded_cache(
    out: Path, config: TrainConfig, report: LintReport, rule: InputRule, console: Console
) -> Path | None:
    """Create the folder for decoded images; None without `cache_decoded`, or if the disk is too small."""
    folder = out / "images"
    remove_cache_folder(folder)
    if not config.cache_decoded:
        return None
    size = decoded_bytes(report.all_image_sizes(), rule)
    if fits_on_disk(out, size):
        return create_cache_folder(folder)
    console.print(
        f"cache_decoded is off: it needs {size / 2**30:.1f} GiB, more than half of the free disk space.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return None


def describe_network(network: Network, config: TrainConfig) -> str:
    """Such as "fcn on resnet18, 12.3 M parameters"."""
    encoder = f" on {config.encoder}" if "encoder" in network.architecture.options else ""
    return f"{config.architecture}{encoder}, {count_parameters(network) / 1e6:.1f} M parameters"


def make_logger(trainer: Trainer, val_set: SegmentationDataset, console: Console, log_mode: LogMode) -> TrainingLogger:
    """The logger of this process: only the first one prints and writes."""
    if not trainer.fabric.is_global_zero:
        return TrainingLogger()
    state, run, out = trainer.state, trainer.run, trainer.out
    tensorboard = None
    if trainer.config.tensorboard and printable(str(out)) != str(out):
        console.print("No TensorBoard files: it cannot write to a folder whose name is not UTF-8.", highlight=False)
    elif trainer.config.tensorboard:
        tensorboard = TensorBoardWriter(
            out / "tensorboard",
            state.step,
            lambda: render_samples(state.eval_network, run.input, val_set),
            plot_confusion_matrix,
        )
    return ProgressLogger(
        out, run.classes, trainer.duration, state.step, console, log_mode, tensorboard, trainer.config.monitor,
        AXES[run.input.axes],
    )  # fmt: skip


def render_samples(network: Network, rule: InputRule, dataset: SegmentationDataset) -> dict[str, Image.Image]:
    """Some images of the split with ground truth and prediction, by name. Leaves the network in eval mode."""
    segmenter, panels = make_torch_segmenter(network.eval(), rule), {}
    for index in dataset.evenly_spaced_indices(NUM_SAMPLE_IMAGES):
        sample, target = dataset.sample_and_labels(index)
        prediction = segmenter.segment(sample).labels
        confusion = ConfusionMatrix(len(dataset.classes))
        confusion.add(target, prediction)
        panel = draw_sample(sample, target, prediction, dataset.classes, f"mIoU {confusion.miou():.2f}", rule)
        panels[dataset.pairs[index].name.replace("/", "_")] = panel
    return panels
