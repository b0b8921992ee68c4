"""Train a network on a data set: `maskserve train DATA`, or `python -m training.train DATA`.

Reads downwards: what was asked, the data and its lint, the network, the loop, and what is left in the run folder:

    config.yaml          every setting, as run
    run.json             the data set, its classes, the input rule
    checkpoints/         best.ckpt (by validation mIoU) and last.ckpt
    metrics.csv          a row a validation
    curves.png           the same, drawn
    samples/             validation pictures with their truth and the answer
    tensorboard/         for `tensorboard --logdir`: the same, and the confusion matrix

More than one device: torchrun starts this script once for each, and they share each batch (`training/machine.py`).
"""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from models.architectures import build
from models.architectures.measure import parameters
from models.architectures.network import Network
from models.errors import DataError, RunError
from models.geometry import fitted_size
from models.spec import InputRule
from training import augment
from training.config import TrainConfig
from training.data import Samples, load
from training.data.loader import STRIDE, opened, training_batches, validation_batches
from training.learner import Learner, averaged
from training.lint import Report, lint, show
from training.loop import Span, fit, validate_on
from training.losses import Criterion, class_weights
from training.machine import choose_device, choose_precision, determined, enough_memory, launch, on_first
from training.metrics import Confusion
from training.network import (
    architecture_options,
    check_batch,
    live,
    load_network,
    make_network,
    read_run,
    weights_file,
)
from training.optim import make_optimizer
from training.progress import TABLE, Log, Watch
from training.report import curves, panel
from training.settings import check_resumed, save_config
from training.state import LAST, State

# Defaults for large photographs, so that a first training ends on a small machine; both can be set.
LARGEST_SIDE, LARGEST_CROP = 1024, 512
SAMPLES = 4  # validation pictures that are drawn at the end


def train(
    data: Path, out: Path, config: TrainConfig, resume: bool = False, console: Console | None = None, log: Log = "bar"
) -> Path:
    """Train on the train split of `data`, validate on its val split, and leave a run folder at `out`.

    With `resume` the run at `out` goes on from its last checkpoint, as if it had never been stopped; `config` is then what it
    began with, but for `MAY_CHANGE` (`training/settings.py`: `resumed` makes it).
    Raises: DataError, ConfigError, RunError; KeyboardInterrupt after Ctrl-C, with the step that was under way saved.
    """
    device = choose_device(config)
    fabric = launch(config, device)
    if not fabric.is_global_zero:
        console, log = Console(quiet=True), "quiet"
    console = console or Console()
    if resume:
        resumable(out, data, config)
    elif (out / LAST).exists():
        raise RunError(f"{out} holds a run already; go on with it by --resume, or choose another --out.")
    else:  # what is wrong with the network is told before the pictures are read
        build(config.architecture, 2, **architecture_options(config))
        weights_file(config)

    report = on_first(fabric, lambda: checked(data, config, console))
    training, validation = load(data, "train", config.format), load(data, "val", config.format)

    fabric.seed_everything(config.seed, verbose=False)
    rule, crop = scale(config, report)
    network = make_network(config, training.classes, console, anew=not resume)
    precision = on_first(fabric, lambda: choose_precision(config, device))
    autocast = torch.bfloat16 if precision == "bf16" else None
    backbone = f" on {config.encoder}" if "encoder" in network.architecture.options else ""
    console.print(
        f"{config.architecture}{backbone}, {parameters(network) / 1e6:.1f} M parameters; "
        f"{len(training)} pictures to train on, {len(validation)} to validate; "
        f"crops of {crop[1]} x {crop[0]}; {precision} on {device}"
        + f" x {fabric.world_size}"
        * (fabric.world_size > 1),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if resume:  # the pictures may have changed since; what the run began with has not
        known = read_run(out)
        rule = InputRule(**known["input"])
        if known["classes"] != [entry.model_dump(mode="json") for entry in training.classes]:
            raise RunError(f"{data} has other classes than when {out} began; train anew into another --out.")
    check_batch(network, max(1, config.batch // config.devices), crop)
    if fabric.is_global_zero:
        out.mkdir(parents=True, exist_ok=True)
        save_config(config, out / "config.yaml")
        if not resume:
            describe(out / "run.json", data, training, rule)

    network.to(memory_format=torch.channels_last)
    if device == "cuda" and fabric.world_size > 1:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    weights = class_weights(config.class_weights, report.pixels["train"][: len(training.classes)])
    criterion = Criterion.of(config, weights)
    learner = fabric.setup_module(Learner(network, criterion, config))
    # Fabric's own hold on an optimiser copies it: what is loaded into the copy never reaches the original.
    state = State(network, make_optimizer(network, config), averaged(network, config.ema))
    if resume:
        state.load(out / LAST)
    start = state.step * config.accumulate
    where = augment.choose(config.augment, device)
    batches = training_batches(training, rule, crop, config, where, start, fabric.global_rank, fabric.world_size)
    held_out = validation_batches(validation, rule, config, fabric.global_rank, fabric.world_size)

    def validate(result: Network) -> Confusion:
        return validate_on(fabric, result, opened(held_out), len(training.classes), autocast)

    def drawn() -> dict[str, Image.Image]:
        return draw_samples(state.result, rule, validation)

    span = Span(len(training), len(validation), config)
    pictures = config.batch * config.accumulate
    board = config.tensorboard and fabric.is_global_zero
    with (
        Watch(out, training.classes, span, pictures, console, log, board, drawn) as watch,
        determined(config.deterministic),
        enough_memory(config, crop),
        closing(opened(batches)) as stream,  # its workers end with it
    ):
        fit(fabric, state, learner, stream, validate, span, config, crop, autocast, watch, out)

    if fabric.is_global_zero:
        curves(out / TABLE, out / "curves.png")
        (out / "samples").mkdir(exist_ok=True)
        for name, sheet in draw_samples(load_network(out), rule, validation).items():
            sheet.save(out / "samples" / f"{name}.png")
    return out


def checked(data: Path, config: TrainConfig, console: Console) -> Report:
    """The lint's report. Raises: DataError where it found errors: none of them must reach the loss."""
    report = lint(data, config.format, ("train", "val"))
    show(report, console)
    if report.errors:
        raise DataError(
            f"{data} has {len(report.errors)} errors; mend them (`maskserve data lint {data}` lists all) and train again."
        )
    return report


def resumable(out: Path, data: Path, config: TrainConfig) -> None:
    """Raises: RunError where the folder holds no run on this data set that can go on, ConfigError with these settings."""
    if not (out / LAST).exists():
        raise RunError(f"{out} holds no {LAST.name} to resume from; train without --resume.")
    began_on = read_run(out)["data"]
    if Path(began_on) != data.resolve():
        raise RunError(
            f"{out} began on {began_on}, not on {data}; resume it with that folder, or choose another --out."
        )
    check_resumed(out, config)


def scale(config: TrainConfig, report: Report) -> tuple[InputRule, tuple[int, int]]:
    """The input rule and the training crop (height, width), from the settings or else from the pictures' median size."""
    height, width = (int(value) for value in np.median(np.array(report.sizes), axis=0))
    rule = InputRule(rule="native")
    if config.input == "fit":
        rule = InputRule(rule="fit", side=config.side or min(max(height, width), LARGEST_SIDE))
    if config.crop:
        return rule, config.crop
    fitted = fitted_size((height, width), rule)
    crop = [min(max(STRIDE, round(side / STRIDE) * STRIDE), LARGEST_CROP) for side in fitted]
    return rule, (crop[0], crop[1])


def describe(file: Path, data: Path, samples: Samples, rule: InputRule) -> None:
    """Write `run.json`: what export needs to know beside the settings and the weights."""
    classes = [entry.model_dump(mode="json") for entry in samples.classes]
    content = {"data": str(data.resolve()), "classes": classes, "input": rule.model_dump(mode="json")}
    file.write_text(json.dumps(content, indent=2) + "\n")


def draw_samples(network: Network, rule: InputRule, samples: Samples) -> dict[str, Image.Image]:
    """Some pictures, spread over the split, with their truth and the network's answer, by name."""
    segmenter, sheets = live(network, rule), {}
    for index in np.unique(np.linspace(0, len(samples) - 1, SAMPLES).astype(int)).tolist():
        picture, truth = samples.picture(index), samples.labels(index)
        answer = segmenter.segment(picture).labels
        matrix = Confusion(len(samples.classes))
        matrix.add(truth, answer)
        sheet = panel(picture, truth, answer, samples.classes, f"mIoU {matrix.miou():.2f}")
        sheets[Path(samples.pairs[index].name).name] = sheet
    return sheets


if __name__ == "__main__":
    from maskserve.cli import main  # the script's words are the verb's

    main("train")
