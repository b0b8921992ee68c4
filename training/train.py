"""Train a network on a data set: `maskserve train DATA`.

Reads downwards: what was asked, the data and its lint, the network, the loop, and what is left in the run folder:

    plan.yaml            where no config was given: the settings that follow from the data, each with its reason
    config.yaml          every setting, as run
    run.json             the data set, its classes, the input rule
    checkpoints/         best.ckpt (by validation mIoU) and last.ckpt
    metrics.csv          a row a validation
    curves.png           the same, drawn
    samples/             validation pictures with their truth and the answer
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

from models.analysis.complexity import parameters
from models.architectures import build
from models.architectures.base import Network
from models.errors import DataError, RunError
from models.inference.geometry import fitted_size
from models.spec import InputRule
from training import augment
from training.config import TrainConfig
from training.config_io import check_resumed, check_there, check_unused, save_config, validated
from training.data import Samples, load
from training.data.decoded_cache import emptied, has_room, size_of, take_away, taken_away
from training.data.loader import STRIDE, opened, training_batches, validation_batches
from training.engine.checkpoint import State
from training.engine.loggers import TABLE, Log, Nobody, Watch
from training.engine.losses import Criterion, class_weights
from training.engine.model_factory import (
    architecture_options,
    check_batch,
    live,
    load_network,
    make_network,
    read_run,
    weights_file,
)
from training.engine.optim import make_optimizer
from training.engine.runtime import choose_device, choose_precision, determined, launch, named, on_first
from training.engine.schedule import Span
from training.engine.step import Learner, averaged
from training.engine.trainer import Setup, fit, validate_on
from training.lint import Report, show, watched
from training.metrics.confusion import Confusion
from training.plan import make_plan
from training.plan.plan_io import save_plan, show_plan
from training.reports.plots import curves, panel
from training.run_folder import LAST, write_whole

# Defaults for large photographs, so that a first training ends on a small machine; both can be set.
LARGEST_SIDE, LARGEST_CROP = 1024, 512
SAMPLES = 4  # validation pictures that are drawn at the end


@dataclass(frozen=True)
class Planned:
    """A config that was made for the data, and what it was made from."""

    config: TrainConfig
    report: Report
    started: float  # by the monotonic clock, when the data was first looked at


def train(
    data: Path,
    out: Path,
    config: TrainConfig,
    resume: bool = False,
    console: Console | None = None,
    log: Log = "bar",
    planned: Planned | None = None,
) -> Path:
    """Train on the train split of `data`, validate on its val split, and leave a run folder at `out`.

    With `resume` the run at `out` goes on from its last checkpoint, as if it had never been stopped; `config` is then what it
    began with, but for `MAY_CHANGE` (`training/config_io.py`: `resumed` makes it). `planned` is what `plan` left, so that the
    data is looked through once, and the minutes count from then.
    Raises: DataError, ConfigError, RunError; KeyboardInterrupt after Ctrl-C, with the step that was under way saved.
    """
    started = planned.started if planned else time.monotonic()
    device = choose_device(config)
    fabric = launch(config, device)
    console = (console or Console()) if fabric.is_global_zero else Console(quiet=True)
    began = on_first(fabric, lambda: resumable(out, data, config) if resume else startable(out, config))
    report = planned.report if planned else on_first(fabric, lambda: checked(data, config, console))
    training, validation = report.samples["train"], report.samples["val"]
    facts = began or on_first(fabric, lambda: describe(data, training, config, device, report))
    if began:
        same_data(began, training, data, out)
    rule, crop = InputRule(**facts["input"]), (facts["crop"][0], facts["crop"][1])
    setup = Setup(fabric, config, crop, torch.bfloat16 if facts["precision"] == "bf16" else None)

    fabric.seed_everything(config.seed, verbose=False)
    network = make_network(config, training.classes, console, anew=not resume)
    backbone = f" on {config.encoder}" if "encoder" in network.architecture.options else ""
    console.print(
        f"{config.architecture}{backbone}, {parameters(network) / 1e6:.1f} M parameters; "
        f"{len(training)} pictures to train on, {len(validation)} to validate; crops of {crop[1]} x {crop[0]}; "
        f"{facts['precision']} on {device}" + f" x {fabric.world_size}" * (fabric.world_size > 1),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    check_batch(network, max(1, config.batch // config.devices), crop)

    network.to(memory_format=torch.channels_last)
    if device == "cuda" and fabric.world_size > 1:
        # timm's, for torch's own would drop the activations that stand in timm's norms.
        network = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    weights = class_weights(config.class_weights, report.pixels["train"][: len(training.classes)])
    span, pictures = Span(len(training), len(validation), config), config.batch * config.accumulate
    kept = on_first(fabric, lambda: place_to_keep(out, config, report, rule, console))
    mine = kept if fabric.is_global_zero else None
    with named(config, crop), determined(config.deterministic), taken_away(mine):
        learner = fabric.setup_module(Learner(network, Criterion.of(config, weights), config))
        # Fabric's own hold on an optimiser copies it: what is loaded into the copy never reaches the original.
        state = State(network, make_optimizer(network, config), averaged(network, config.ema), started=started)
        if resume:
            state.load(out / LAST)
        if fabric.is_global_zero:
            save_config(config, out / "config.yaml")
            write_whole(out / "run.json", (json.dumps(facts, indent=2) + "\n").encode())
        here = (fabric.global_rank, fabric.world_size)
        where = augment.choose(config.augment, device)
        batches = training_batches(training, rule, crop, config, where, state.step * config.accumulate, *here, kept)
        held_out = validation_batches(validation, rule, config, *here, kept)

        def validate(result: Network) -> Confusion:
            with closing(opened(held_out)) as stream:
                return validate_on(setup, result, stream, len(training.classes))

        def drawn() -> dict[str, Image.Image]:
            return draw_samples(state.result, rule, validation)

        watch: Watch | Nobody = Nobody()
        if fabric.is_global_zero:
            watch = Watch(out, training.classes, span, pictures, state.step, console, log, config.tensorboard, drawn)
        with watch, closing(opened(batches)) as stream:
            fit(setup, state, learner, stream, validate, span, watch, out)

    if fabric.is_global_zero:
        curves(out / TABLE, out / "curves.png")
        (out / "samples").mkdir(exist_ok=True)
        for name, sheet in draw_samples(load_network(out), rule, validation).items():
            sheet.save(out / "samples" / f"{name}.png")
    return out


def plan(data: Path, file: Path | None, wishes: dict[str, Any], console: Console) -> Planned:
    """Plan a training from the data and this machine, print the plan, and write it to `file` as YAML.

    wishes: settings that stand as they are. Raises: DataError, ConfigError.
    """
    started, config = time.monotonic(), validated(wishes)
    possible(config)
    report = checked(data, config, console)
    with console.status("trying steps on this machine"):
        made = make_plan(report, wishes, file.parent if file else None, started)
    show_plan(made, console)
    if file:
        save_plan(made, file)
    return Planned(made.config(), report, started)


def checked(data: Path, config: TrainConfig, console: Console) -> Report:
    """The lint's report. Raises: DataError where it found errors: none of them must reach the loss."""
    report = watched(data, console, config.format, ("train", "val"))
    show(report, console)
    if errors := len(report.errors):
        told = f"{errors} error{'s' * (errors > 1)}"
        raise DataError(
            f"{data} has {told}; mend what is wrong (`maskserve data lint {data}` lists all) and train again."
        )
    if "val" not in report.samples:
        load(data, "val", config.format)  # says what is missing
    return report


def startable(out: Path, config: TrainConfig) -> None:
    """What is wrong with the settings or the network is told before the pictures are read. Raises: RunError, ConfigError."""
    check_unused(out)
    possible(config)


def possible(config: TrainConfig) -> None:
    """Raises: ConfigError, WeightsError for a network or weights that there are not."""
    build(config.architecture, 2, **architecture_options(config))
    weights_file(config)


def resumable(out: Path, data: Path, config: TrainConfig) -> dict[str, Any]:
    """What the run at `out` began with. Raises: RunError where it cannot go on with this data, ConfigError with these settings."""
    check_there(out)
    began = read_run(out)
    if "pictures" not in began:
        raise RunError(f"{out} is of an earlier version of maskserve; train anew into another --out.")
    if Path(began["data"]) != data.resolve():
        raise RunError(
            f"{out} began on {began['data']}, not on {data}; resume it with that folder, or choose another --out."
        )
    check_resumed(out, config)
    return began


def same_data(began: dict[str, Any], training: Samples, data: Path, out: Path) -> None:
    """Raises: RunError where the classes or the training pictures are others than when the run began."""
    anew = f"train anew into another --out, from {out}'s bundle if you like (weights=BUNDLE)."
    if began["classes"] != [entry.model_dump(mode="json") for entry in training.classes]:
        raise RunError(f"{data} has other classes than when {out} began; {anew}")
    if began["pictures"] != named_pictures(training):
        raise RunError(
            f"{data} has other training pictures than when {out} began ({began['pictures']['count']} then, {len(training)} "
            f"now), so the run cannot be what it would have been; {anew}"
        )


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


def place_to_keep(out: Path, config: TrainConfig, report: Report, rule: InputRule, console: Console) -> Path | None:
    """A folder for the pictures uncompressed; None where that is not asked for, or the disk does not hold them."""
    folder = out / "pictures"
    take_away(folder)
    if not config.keep:
        return None
    wanted = size_of(report.every_size(), rule)
    if has_room(out, wanted):
        return emptied(folder)
    told = f"The disk has no room to keep {wanted / 2**30:.1f} GiB of pictures, so they are read anew each time."
    console.print(told, highlight=False, markup=False, soft_wrap=True)
    return None


def describe(data: Path, samples: Samples, config: TrainConfig, device: str, report: Report) -> dict[str, Any]:
    """What goes into `run.json`: what a resume and an export must know, and settings alone do not tell."""
    rule, crop = scale(config, report)
    return {
        "data": str(data.resolve()),
        "classes": [entry.model_dump(mode="json") for entry in samples.classes],
        "input": rule.model_dump(mode="json"),
        "crop": crop,
        "precision": choose_precision(config, device),
        "pictures": named_pictures(samples),
    }


def named_pictures(samples: Samples) -> dict[str, Any]:
    """How many pictures there are, and a hash of their names in order."""
    names = "\n".join(pair.name for pair in samples.pairs)
    return {"count": len(samples), "sha256": hashlib.sha256(names.encode()).hexdigest()}


def draw_samples(network: Network, rule: InputRule, samples: Samples) -> dict[str, Image.Image]:
    """Some pictures, spread over the split, with their truth and the network's answer, by name."""
    segmenter, sheets = live(network.eval(), rule), {}
    for index in samples.spread(SAMPLES):
        picture, truth = samples.picture(index), samples.labels(index)
        answer = segmenter.segment(picture).labels
        matrix = Confusion(len(samples.classes))
        matrix.add(truth, answer)
        sheet = panel(picture, truth, answer, samples.classes, f"mIoU {matrix.miou():.2f}")
        sheets[samples.pairs[index].name.replace("/", "_")] = sheet
    return sheets
