"""Train a network on a data set: `maskserve train DATA`, or `python -m training.train DATA`.

Reads downwards: what was asked, the data and its lint, the network, the loop, and what is left in the run folder:

    config.yaml          every setting, as run
    run.json             the data set, its classes, the input rule
    checkpoints/         best.ckpt (by validation mIoU) and last.ckpt
    metrics.csv          a row an epoch
    curves.png           the same, drawn
    samples/             validation pictures with their truth and the answer
"""

import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from models.architectures import build
from models.architectures.measure import parameters
from models.architectures.network import Network
from models.errors import ConfigError, DataError, RunError
from models.geometry import fitted_size
from models.spec import ClassInfo, InputRule
from training.config import TrainConfig, load_config, save_config
from training.data import Samples, load
from training.data.loader import STRIDE, training_batches, validation_batches
from training.lint import Report, lint, show
from training.metrics import Confusion
from training.module import Training
from training.network import (
    architecture_options,
    check_batch,
    live,
    load_network,
    make_network,
    read_run,
    weights_file,
)
from training.progress import TimeLimit, Watch
from training.report import curves, panel

# Defaults for large photographs, so that a first training ends on a small machine; both can be set.
LARGEST_SIDE, LARGEST_CROP = 1024, 512
SAMPLES = 4  # validation pictures that are drawn at the end


def train(data: Path, out: Path, config: TrainConfig, resume: bool = False, console: Console | None = None) -> Path:
    """Train on the train split of `data`, validate on its val split, and leave a run folder at `out`.

    With `resume` the run at `out` goes on from its last checkpoint, under the settings that it began with.
    Raises: DataError, ConfigError, RunError; KeyboardInterrupt after Ctrl-C, with the last checkpoint kept.
    """
    console = console or Console()
    last = out / "checkpoints" / "last.ckpt"
    if resume:
        config = resumable(out, last, data)
    elif last.exists():
        raise RunError(f"{out} holds a run already; go on with it by --resume, or choose another --out.")
    else:  # what is wrong with the network is told before the pictures are read
        build(config.architecture, 2, **architecture_options(config))
        weights_file(config)

    report = lint(data, config.format, ("train", "val"))
    show(report, console)
    if report.errors:
        raise DataError(
            f"{data} has {len(report.errors)} errors; mend them (`maskserve data lint {data}` lists all) and train again."
        )
    training, validation = load(data, "train", config.format), load(data, "val", config.format)

    pl.seed_everything(config.seed, verbose=False)
    rule, crop = scale(config, report)
    network = make_network(config, training.classes, console, anew=not resume)
    device = choose_device(config)
    precision = choose_precision(config, device)
    backbone = f" on {config.encoder}" if "encoder" in network.architecture.options else ""
    console.print(
        f"{config.architecture}{backbone}, {parameters(network) / 1e6:.1f} M parameters; "
        f"{len(training)} pictures to train on, {len(validation)} to validate; "
        f"crops of {crop[1]} x {crop[0]}; {precision} on {device}",
        highlight=False,
        markup=False,
    )
    out.mkdir(parents=True, exist_ok=True)
    save_config(config, out / "config.yaml")
    if resume:  # the pictures may have changed since; what the run began with has not
        known = read_run(out)
        rule = InputRule(**known["input"])
        if known["classes"] != [entry.model_dump(mode="json") for entry in training.classes]:
            raise RunError(f"{data} has other classes than when {out} began; train anew into another --out.")
    else:
        describe(out / "run.json", data, training, rule)

    module = Training(network, len(training.classes), config)
    batches = training_batches(training, rule, crop, config)
    check_batch(network, batches.batch_size or 1, crop)
    trainer = make_trainer(out, config, device, precision, batches.batch_size or 1, training.classes, console)
    fit(trainer, module, batches, validation_batches(validation, rule, config), last if resume else None)

    curves(out / "metrics.csv", out / "curves.png")
    draw_samples(load_network(out), rule, validation, out / "samples")
    return out


def resumable(out: Path, last: Path, data: Path) -> TrainConfig:
    """The settings of a run that can go on. Raises: RunError."""
    if not last.exists():
        raise RunError(f"{out} holds no {last.name} to resume from; train without --resume.")
    began_on = read_run(out)["data"]
    if Path(began_on) != data.resolve():
        raise RunError(
            f"{out} began on {began_on}, not on {data}; resume it with that folder, or choose another --out."
        )
    return load_config(out / "config.yaml", [])


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


def choose_device(config: TrainConfig) -> str:
    """cpu or cuda. Raises: ConfigError where a GPU is asked for and none is there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("The setting device=cuda is not possible: torch sees no GPU here. Take device=cpu or auto.")
    return "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


def choose_precision(config: TrainConfig, device: str) -> str:
    """f32 or bf16; `auto` takes bf16 where it is quicker on this machine."""
    if config.precision != "auto":
        return config.precision
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "f32"
    return "bf16" if bf16_pays() else "f32"


def bf16_pays() -> bool:
    """Whether a convolution is clearly quicker in bfloat16 on this CPU: tried, because its flags do not tell."""
    with torch.no_grad():
        seconds = {}
        for kind in (torch.float32, torch.bfloat16):
            layer = torch.nn.Conv2d(64, 64, 3, padding=1).to(kind)
            images = torch.randn(4, 64, 64, 64).to(kind, memory_format=torch.channels_last)
            times = []
            for _ in range(5):
                begun = time.perf_counter()
                layer(images)
                times.append(time.perf_counter() - begun)
            seconds[kind] = min(times)
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]


def describe(file: Path, data: Path, samples: Samples, rule: InputRule) -> None:
    """Write `run.json`: what export needs to know beside the settings and the weights."""
    classes = [entry.model_dump(mode="json") for entry in samples.classes]
    content = {"data": str(data.resolve()), "classes": classes, "input": rule.model_dump(mode="json")}
    file.write_text(json.dumps(content, indent=2) + "\n")


def make_trainer(
    out: Path, config: TrainConfig, device: str, precision: str, batch: int, classes: list[ClassInfo], console: Console
) -> pl.Trainer:
    """Lightning's loop with our checkpoints and our progress bar."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its greetings and tips
    # `save_last=True` would write the last only where the best was written too, and a resume go back to the best.
    folder = out / "checkpoints"
    best = ModelCheckpoint(folder, filename="best", monitor="miou", mode="max", enable_version_counter=False)
    last = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    limit = [TimeLimit(config.minutes)] if config.minutes else []
    return pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        max_epochs=config.epochs,
        callbacks=[Watch(out / "metrics.csv", classes, batch, console), best, last, *limit],
        default_root_dir=out,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def fit(trainer: pl.Trainer, module: Training, training: Any, validation: Any, checkpoint: Path | None) -> None:
    """Run the loop. Lightning turns Ctrl-C into an exit of its own; here it stays a KeyboardInterrupt."""
    module.network.to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        # Few cores on purpose: torch's own threads compute while the workers read.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # A run that is resumed, and one whose first start failed, find their folder made.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        try:
            trainer.fit(module, training, validation, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as error:
            raise KeyboardInterrupt from error


def draw_samples(network: Network, rule: InputRule, samples: Samples, target: Path) -> None:
    """Draw some pictures, spread over the split, with their truth and the network's answer."""
    target.mkdir(exist_ok=True)
    segmenter = live(network, rule)
    for index in np.unique(np.linspace(0, len(samples) - 1, SAMPLES).astype(int)).tolist():
        picture, truth = samples.picture(index), samples.labels(index)
        answer = segmenter.segment(picture).labels
        matrix = Confusion(len(samples.classes))
        matrix.add(truth, answer)
        sheet = panel(picture, truth, answer, samples.classes, f"mIoU {matrix.miou():.2f}")
        sheet.save(target / f"{Path(samples.pairs[index].name).name}.png")


if __name__ == "__main__":
    from maskserve.cli import main  # the script's words are the verb's

    main("train")
