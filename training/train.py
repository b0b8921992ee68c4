"""Train a network on a data set: `maskserve train DATA`.

Reads downwards: what was asked, the data and its lint, the network, the loop, and what is left in the run folder:

    plan.yaml            where no config was given: the settings that follow from the data, each with its reason
    config.yaml          every setting, as run
    run.json             the data set, its classes, the input rule
    checkpoints/         best.ckpt (by validation mIoU) and last.ckpt
    metrics.csv          a row a validation
    curves.png           the same, drawn
    samples/             validation images with their truth and the answer
    tensorboard/         for `tensorboard --logdir`: the same, and the confusion matrix

More than one device: torchrun starts this script once for each, and they share each batch (`training/engine/runtime.py`).
"""

import hashlib
import json
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from timm.layers.norm_act import convert_sync_batchnorm

from models.analysis.complexity import count_parameters
from models.architectures import build
from models.architectures.base import Network
from models.atomic_write import write_atomically
from models.errors import DataError, RunError
from models.inference.geometry import network_input_size
from models.spec import InputRule
from training import augment
from training.config import TrainConfig
from training.config_io import check_no_run, check_resume_settings, check_run_exists, config_from_dict, save_config
from training.data import SegmentationDataset, load_split
from training.data.decoded_cache import (
    create_cache_folder,
    decoded_bytes,
    fits_on_disk,
    remove_cache_folder,
    removed_on_exit,
)
from training.data.loader import STRIDE, build_train_loader, build_val_loader, iterate_batches
from training.engine.checkpoint import TrainState
from training.engine.loggers import METRICS_CSV, LogMode, NullLogger, ProgressLogger
from training.engine.losses import Criterion, compute_class_weights
from training.engine.model_factory import (
    architecture_options,
    check_batch_norm,
    find_weights_file,
    load_network,
    make_network,
    make_torch_segmenter,
    read_run_metadata,
)
from training.engine.optim import make_optimizer
from training.engine.runtime import (
    choose_device,
    choose_precision,
    deterministic_mode,
    launch_fabric,
    run_on_rank_zero,
    translate_errors,
)
from training.engine.schedule import TrainingDuration
from training.engine.step import NetworkWithLoss, make_ema_network
from training.engine.trainer import ComputeContext, compute_confusion, fit
from training.lint import LintReport, lint_with_progress, print_lint_report
from training.metrics.confusion import ConfusionMatrix
from training.plan import make_plan
from training.plan.plan_io import print_plan, save_plan
from training.reports.plots import draw_panel, plot_confusion_matrix, plot_curves
from training.run_folder import LAST_CHECKPOINT

# Defaults for large photographs, so that a first training ends on a small machine; both can be set.
DEFAULT_MAX_SIDE, DEFAULT_MAX_CROP = 1024, 512
NUM_SAMPLE_IMAGES = 4  # validation images that are drawn at the end


@dataclass(frozen=True)
class PlannedTraining:
    """A config that was made for the data, and what it was made from."""

    config: TrainConfig
    report: LintReport
    start_time: float  # by the monotonic clock, when the data was first looked at


def train(
    data: Path,
    out: Path,
    config: TrainConfig,
    resume: bool = False,
    console: Console | None = None,
    log_mode: LogMode = "bar",
    planned_training: PlannedTraining | None = None,
) -> Path:
    """Train on the train split of `data`, validate on its val split, and leave a run folder at `out`.

    With `resume` the run at `out` goes on from its last checkpoint, as if it had never been stopped; `config` is then what it
    began with, but for `MAY_CHANGE` (`training/config_io.py`: `resumed` makes it). `planned` is what `plan` left, so that the
    data is looked through once, and the minutes count from then.
    Raises: DataError, ConfigError, RunError; KeyboardInterrupt after Ctrl-C, with the step that was under way saved.
    """
    started = planned_training.start_time if planned_training else time.monotonic()
    device = choose_device(config)
    fabric = launch_fabric(config, device)
    console = (console or Console()) if fabric.is_global_zero else Console(quiet=True)
    began = run_on_rank_zero(
        fabric, lambda: read_resumable_run(out, data, config) if resume else check_output_folder(out, config)
    )
    report = (
        planned_training.report
        if planned_training
        else run_on_rank_zero(fabric, lambda: lint_before_training(data, config, console))
    )
    training, validation = report.datasets["train"], report.datasets["val"]
    facts = began or run_on_rank_zero(fabric, lambda: run_metadata(data, training, config, device, report))
    if began:
        check_same_dataset(began, training, data, out)
    rule, crop = InputRule(**facts["input"]), (facts["crop"][0], facts["crop"][1])
    setup = ComputeContext(fabric, config, crop, torch.bfloat16 if facts["precision"] == "bf16" else None)

    fabric.seed_everything(config.seed, verbose=False)
    network = make_network(config, training.classes, console, load_weights=not resume)
    backbone = f" on {config.encoder}" if "encoder" in network.architecture.options else ""
    console.print(
        f"{config.architecture}{backbone}, {count_parameters(network) / 1e6:.1f} M parameters; "
        f"{len(training)} images to train on, {len(validation)} to validate; crops of {crop[1]} x {crop[0]}; "
        f"{facts['precision']} on {device}" + f" x {fabric.world_size}" * (fabric.world_size > 1),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    check_batch_norm(network, max(1, config.batch // config.devices), crop)

    network.to(memory_format=torch.channels_last)
    if device == "cuda" and fabric.world_size > 1:
        # timm's, for torch's own would drop the activations that stand in timm's norms.
        network = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    weights = compute_class_weights(config.class_weights, report.pixel_counts["train"][: len(training.classes)])
    span, images = TrainingDuration(len(training), len(validation), config), config.batch * config.accumulate
    kept = run_on_rank_zero(fabric, lambda: prepare_decoded_cache(out, config, report, rule, console))
    mine = kept if fabric.is_global_zero else None
    with translate_errors(config, crop), deterministic_mode(config.deterministic), removed_on_exit(mine):
        learner = fabric.setup_module(NetworkWithLoss(network, Criterion.from_config(config, weights), config))
        # Fabric's own hold on an optimiser copies it: what is loaded into the copy never reaches the original.
        state = TrainState(
            network, make_optimizer(network, config), make_ema_network(network, config.ema), start_time=started
        )
        if resume:
            state.load(out / LAST_CHECKPOINT)
        if fabric.is_global_zero:
            save_config(config, out / "config.yaml")
            write_atomically(out / "run.json", (json.dumps(facts, indent=2) + "\n").encode())
        here = (fabric.global_rank, fabric.world_size)
        where = augment.choose_augment_device(config.augment, device)
        batches = build_train_loader(training, rule, crop, config, where, state.step * config.accumulate, *here, kept)
        held_out = build_val_loader(validation, rule, config, *here, kept)

        def validate(result: Network) -> ConfusionMatrix:
            with closing(iterate_batches(held_out)) as stream:
                return compute_confusion(setup, result, stream, len(training.classes))

        def drawn() -> dict[str, Image.Image]:
            return render_samples(state.eval_network, rule, validation)

        watch: ProgressLogger | NullLogger = NullLogger()
        if fabric.is_global_zero:
            watch = ProgressLogger(
                out,
                training.classes,
                span,
                images,
                state.step,
                console,
                log_mode,
                config.tensorboard,
                drawn,
                plot_confusion_matrix,
            )
        with watch, closing(iterate_batches(batches)) as stream:
            fit(setup, state, learner, stream, validate, span, watch, out)

    if fabric.is_global_zero:
        plot_curves(out / METRICS_CSV, out / "curves.png")
        (out / "samples").mkdir(exist_ok=True)
        for name, sheet in render_samples(load_network(out), rule, validation).items():
            sheet.save(out / "samples" / f"{name}.png")
    return out


def plan_training(data: Path, file: Path | None, wishes: dict[str, Any], console: Console) -> PlannedTraining:
    """Plan a training from the data and this machine, print the plan, and write it to `file` as YAML.

    wishes: settings that stand as they are. Raises: DataError, ConfigError.
    """
    started, config = time.monotonic(), config_from_dict(wishes)
    check_model_settings(config)
    report = lint_before_training(data, config, console)
    with console.status("trying steps on this machine"):
        made = make_plan(report, wishes, file.parent if file else None, started)
    print_plan(made, console)
    if file:
        save_plan(made, file)
    return PlannedTraining(made.config(), report, started)


def lint_before_training(data: Path, config: TrainConfig, console: Console) -> LintReport:
    """The lint's report. Raises: DataError where it found errors: none of them must reach the loss."""
    report = lint_with_progress(data, console, config.format, ("train", "val"))
    print_lint_report(report, console)
    if errors := len(report.errors):
        told = f"{errors} error{'s' * (errors > 1)}"
        raise DataError(
            f"{data} has {told}; mend what is wrong (`maskserve data lint {data}` lists all) and train again."
        )
    if "val" not in report.datasets:
        load_split(data, "val", config.format)  # says what is missing
    return report


def check_output_folder(out: Path, config: TrainConfig) -> None:
    """What is wrong with the settings or the network is told before the images are read. Raises: RunError, ConfigError."""
    check_no_run(out)
    check_model_settings(config)


def check_model_settings(config: TrainConfig) -> None:
    """Raises: ConfigError, WeightsError for a network or weights that there are not."""
    build(config.architecture, 2, **architecture_options(config))
    find_weights_file(config)


def read_resumable_run(out: Path, data: Path, config: TrainConfig) -> dict[str, Any]:
    """What the run at `out` began with. Raises: RunError where it cannot go on with this data, ConfigError with these settings."""
    check_run_exists(out)
    began = read_run_metadata(out)
    if "images" not in began:
        raise RunError(f"{out} is of an earlier version of maskserve; train anew into another --out.")
    if Path(began["data"]) != data.resolve():
        raise RunError(
            f"{out} began on {began['data']}, not on {data}; resume it with that folder, or choose another --out."
        )
    check_resume_settings(out, config)
    return began


def check_same_dataset(began: dict[str, Any], training: SegmentationDataset, data: Path, out: Path) -> None:
    """Raises: RunError where the classes or the training images are others than when the run began."""
    anew = f"train anew into another --out, from {out}'s bundle if you like (weights=BUNDLE)."
    if began["classes"] != [entry.model_dump(mode="json") for entry in training.classes]:
        raise RunError(f"{data} has other classes than when {out} began; {anew}")
    if began["images"] != hash_image_names(training):
        raise RunError(
            f"{data} has other training images than when {out} began ({began['images']['count']} then, {len(training)} "
            f"now), so the run cannot be what it would have been; {anew}"
        )


def choose_resize_and_crop(config: TrainConfig, report: LintReport) -> tuple[InputRule, tuple[int, int]]:
    """The input rule and the training crop (height, width), from the settings or else from the images' median size."""
    height, width = (int(value) for value in np.median(np.array(report.train_image_sizes), axis=0))
    rule = InputRule(rule="native")
    if config.input == "fit":
        rule = InputRule(rule="fit", side=config.side or min(max(height, width), DEFAULT_MAX_SIDE))
    if config.crop:
        return rule, config.crop
    fitted = network_input_size((height, width), rule)
    crop = [min(max(STRIDE, round(side / STRIDE) * STRIDE), DEFAULT_MAX_CROP) for side in fitted]
    return rule, (crop[0], crop[1])


def prepare_decoded_cache(
    out: Path, config: TrainConfig, report: LintReport, rule: InputRule, console: Console
) -> Path | None:
    """A folder for the images uncompressed; None where that is not asked for, or the disk does not hold them."""
    folder = out / "images"
    remove_cache_folder(folder)
    if not config.cache_decoded:
        return None
    wanted = decoded_bytes(report.all_image_sizes(), rule)
    if fits_on_disk(out, wanted):
        return create_cache_folder(folder)
    told = f"The disk has no room to keep {wanted / 2**30:.1f} GiB of images, so they are read anew each time."
    console.print(told, highlight=False, markup=False, soft_wrap=True)
    return None


def run_metadata(
    data: Path, samples: SegmentationDataset, config: TrainConfig, device: str, report: LintReport
) -> dict[str, Any]:
    """What goes into `run.json`: what a resume and an export must know, and settings alone do not tell."""
    rule, crop = choose_resize_and_crop(config, report)
    return {
        "data": str(data.resolve()),
        "classes": [entry.model_dump(mode="json") for entry in samples.classes],
        "input": rule.model_dump(mode="json"),
        "crop": crop,
        "precision": choose_precision(config, device),
        "images": hash_image_names(samples),
    }


def hash_image_names(samples: SegmentationDataset) -> dict[str, Any]:
    """How many images there are, and a hash of their names in order."""
    names = "\n".join(pair.name for pair in samples.pairs)
    return {"count": len(samples), "sha256": hashlib.sha256(names.encode()).hexdigest()}


def render_samples(network: Network, rule: InputRule, samples: SegmentationDataset) -> dict[str, Image.Image]:
    """Some images, spread over the split, with their truth and the network's answer, by name."""
    segmenter, sheets = make_torch_segmenter(network.eval(), rule), {}
    for index in samples.evenly_spaced_indices(NUM_SAMPLE_IMAGES):
        image, truth = samples.image(index), samples.labels(index)
        answer = segmenter.segment(image).labels
        matrix = ConfusionMatrix(len(samples.classes))
        matrix.add(truth, answer)
        sheet = draw_panel(image, truth, answer, samples.classes, f"mIoU {matrix.miou():.2f}")
        sheets[samples.pairs[index].name.replace("/", "_")] = sheet
    return sheets
