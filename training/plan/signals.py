"""The plan of a training on signals: what the network takes, and the rules that differ from those of images."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from models.errors import ConfigError, closest_names, quoted
from models.readers.signal import HERTZ, LEAD
from models.spec import IGNORE_INDEX, InputRule, Scaling, Spacing
from training.config import TrainConfig
from training.data.signals import MAX_RECENT_BYTES
from training.lint import LintReport
from training.plan.budget import StepProfiler, shrink_batch_to_fit
from training.plan.profiling import MachineProfile
from training.plan.rules import Plan

MIN_STEPS = 10  # time steps of a short event of the narrowest class
SHORT, LONG = 0.02, 0.99  # quantiles of durations: what the rate, and what the crop must show
MIN_CROP, MAX_CROP, CROP_EVENTS = 1024, 8192, 8  # time steps; and times the longest event
CROP_MULTIPLE = 32
BATCH_STEPS = {"cpu": 16 * 2048, "cuda": 128 * 2048}  # time steps of a batch, all crops together
MIN_BATCH, MAX_BATCH = 8, 128
WIDTH, SMALL_WIDTH = 24, 16  # channels of the first stage
# Below this number of crops, more of them are worth more than a larger U-Net, whose steps take five times as long.
CROPS_FOR_FULL_SIZE = 150_000
AUGMENT_SECONDS = 0.001  # of a core, per crop
# The shortest event that is kept, as a fraction of the 1% quantile of its class's durations; and events that such a quantile needs.
SHORTEST_EVENT, MIN_EVENTS = 0.6, 100
MIN_CHANCE = 0.5  # that a random crop has the rarest class; below, some crops are drawn around a class


def choose_signal_input(report: LintReport, config: TrainConfig) -> tuple[InputRule, str]:
    """What the network takes of the recordings, and why. Raises: ConfigError."""
    rate, why = choose_rate(report, config)
    limits, scaled = _choose_scaling(report, config)
    channels, leads = _choose_channels(report, config)
    spacing = None if rate is None else Spacing(values=(rate,), unit=HERTZ)
    scaling = Scaling(kind="zscore", low=(), high=())
    if limits:
        low, high = ((limit,) * len(channels) for limit in limits)
        scaling = Scaling(kind="fixed", low=low, high=high)
    rule = InputRule(
        rule="native",
        axes="T",
        channels=channels,
        dtype="float32",
        scaling=scaling,
        nodata=config.nodata,
        spacing=spacing,
    )
    at = f"{rate:g} Hz: {why}" if rate else why
    return rule, f"{leads} {at} {scaled}"


def choose_rate(report: LintReport, config: TrainConfig) -> tuple[float | None, str]:
    """The rate to train at, in Hz, and why: as set, or enough for the narrowest class, at a whole fraction of the recorded rate."""
    rates = [stats.rate for stats in report.sample_stats.get("train", []) if stats.rate]
    if config.rate:
        return config.rate, "your setting."
    if not rates:
        return None, "The files state no sampling rate: they are taken as they are."
    recorded = Counter(rates).most_common(1)[0][0]
    name, shortest = narrowest_class(report)
    if shortest is None:
        return recorded, "the rate of the recordings."
    factor = max(1, math.floor(recorded * shortest / MIN_STEPS + 1e-6))
    rate = recorded / factor
    steps = shortest * rate
    if factor == 1:
        return (
            recorded,
            f"the rate of the recordings; a short {name} ({1000 * shortest:.0f} ms) has {steps:.0f} time steps.",
        )
    return rate, (
        f"1/{factor} of the recorded {recorded:g} Hz; a short {name} ({1000 * shortest:.0f} ms) still has {steps:.0f} time steps."
    )


def narrowest_class(report: LintReport) -> tuple[str, float | None]:
    """The class with the shortest events, and their 2% quantile in seconds; None without events."""
    found = []
    for label, entry in enumerate(report.classes[1:], 1):
        durations = report.durations(label)
        if len(durations):
            found.append((float(np.quantile(durations, SHORT)), entry.name))
    shortest = min(found, default=(None, ""))
    return shortest[1], shortest[0]


def longest_event(report: LintReport) -> tuple[str, float | None]:
    """The class with the longest events, and their 99% quantile in seconds (time steps without a rate); None without events."""
    found = []
    for label, entry in enumerate(report.classes[1:], 1):
        durations = report.durations(label)
        if len(durations):
            found.append((float(np.quantile(durations, LONG)), entry.name))
    longest = max(found, default=(None, ""))
    return longest[1], longest[0]


def _choose_scaling(report: LintReport, config: TrainConfig) -> tuple[tuple[float, float] | None, str]:
    """The range of `fixed`, or None for `zscore`; and why. Raises: ConfigError."""
    if config.scaling == "window":
        raise ConfigError("scaling=window is for images; signals have zscore, or fixed with sample_range=LOW,HIGH.")
    if config.scaling == "fixed" or config.sample_range:
        low, high = config.sample_range or (-1.0, 1.0)
        return (low, high), f"Scaling fixed, {low:g} to {high:g}: your setting."
    reason = (
        "your setting" if config.scaling == "zscore" else "electrodes and amplifiers differ in their gain and offset"
    )
    return None, f"Scaling zscore: {reason}."


def _choose_channels(report: LintReport, config: TrainConfig) -> tuple[tuple[str, ...], str]:
    """The names of the channels: `lead` where each lead is a sample of its own; else those that all recordings have.

    Raises: ConfigError.
    """
    train = report.datasets["train"]
    if train.pairs and all(pair.lead for pair in train.pairs):
        return (LEAD,), "Each lead is a sample of its own,"
    usual = Counter(tuple(lead.name for lead in stats.leads) for stats in report.sample_stats["train"] if stats.leads)
    found = usual.most_common(1)[0][0] if usual else ()
    if config.channels is None:
        return found, f"The leads {', '.join(found)} together,"
    names = [name.lower() for name in found]
    if unknown := [name for name in config.channels if name.lower() not in names]:
        close = closest_names(unknown[0], found)
        hint = f"did you mean {close}? " if close else ""
        raise ConfigError(f"There is no lead {quoted(unknown[0])}; {hint}The recordings have {', '.join(found)}.")
    return tuple(
        found[names.index(name.lower())] for name in config.channels
    ), f"The leads {', '.join(config.channels)},"


def choose_signal_network(plan: Plan) -> None:
    """The network: a U-Net, unless an encoder or weights of another network are set."""
    if plan["weights"] == "none" and "encoder" not in plan.overrides:
        plan.set("architecture", "unet", "fine maps of one time step, and a wide field by its coarse stages")
    if plan["architecture"] == "unet":
        plan.set("width", WIDTH, "signals have one row: few channels are enough, and fast")


def choose_signal_size(plan: Plan, profiler: StepProfiler) -> float:
    """A smaller U-Net where the time is short, and a batch that fits into memory. Returns: seconds per step.

    Raises: ConfigError.
    """
    seconds = shrink_batch_to_fit(plan, profiler)
    crops = profiler.samples_in_time(plan, seconds)
    if plan["architecture"] != "unet" or crops >= CROPS_FOR_FULL_SIZE:
        return seconds
    reason = f"smaller than usual: {WIDTH} channels and 2 blocks would train on only {crops:,.0f} crops in the time"
    plan.set("width", SMALL_WIDTH, reason)
    plan.set("blocks", 1, "one residual block per stage, for the same reason")
    return shrink_batch_to_fit(plan, profiler)


def choose_signal_crop(plan: Plan, report: LintReport, rule: InputRule) -> None:
    """The crop: many times the longest event, and at least a thousand time steps; at most the recording."""
    name, longest = longest_event(report)
    lengths = [
        stats.size[0] * ((rule.rate or 1.0) / (stats.rate or rule.rate or 1.0))
        for stats in report.sample_stats["train"]
        if stats.size
    ]
    wanted = max(MIN_CROP, (longest or 0.0) * (rule.rate or 1.0) * CROP_EVENTS)
    median = float(np.median(lengths)) if lengths else wanted
    steps = min(MAX_CROP, wanted, median)
    crop = max(CROP_MULTIPLE, math.ceil(steps / CROP_MULTIPLE) * CROP_MULTIPLE)
    seconds = f" ({crop / rule.rate:.1f} s)" if rule.rate else ""
    if steps == median and median < wanted:
        reason = f"the whole recording{seconds}"
    else:
        reason = (
            f"{CROP_EVENTS} times a long {name}, at least {MIN_CROP} time steps{seconds}"
            if name
            else f"{MIN_CROP} time steps"
        )
    plan.set("crop", [crop], reason)


def choose_signal_augmentation(plan: Plan, report: LintReport, rule: InputRule) -> None:
    """What electrodes, amplifiers and bodies do; all kinds at moderate strengths."""
    plan.set("stretch", 0.15, "hearts, breaths and machines do not keep one pace")
    plan.set("gain", 0.3, "electrodes differ; the deviation of a whole recording is only a rough scale")
    plan.set("wander", 0.5, "breathing and movements shift the baseline")
    if rule.rate is None or rule.rate > 100:
        plan.set("hum", 0.1, "mains hum of 50 or 60 Hz, unless the rate cannot hold it")
    else:
        plan.set("hum", 0.0, f"{rule.rate:g} Hz cannot hold mains hum")
    plan.set("noise", 6.0, "up to a tenth of a lead's deviation (58 levels)")
    if len(rule.channels) > 1:
        plan.set("lead_dropout", 0.1, "a lead that comes off must not stop the others")
    else:
        plan.set("lead_dropout", 0.0, "there is one lead")
    chance = _rarest_chance(plan, report, rule)
    if chance < MIN_CHANCE:
        plan.set("class_balanced_crops", 0.5, f"the rarest class is in only {chance:.0%} of random crops")
    else:
        plan.set("class_balanced_crops", 0.0, f"even the rarest class is in {chance:.0%} of random crops")


def _rarest_chance(plan: Plan, report: LintReport, rule: InputRule) -> float:
    """The fraction of random crops that have the rarest class, about: of recordings with it, and by the time between events."""
    images = report.images_with_label["train"][: len(report.classes)]
    total = max(1, report.image_counts["train"])
    crop_seconds = plan["crop"][0] / (rule.rate or 1.0)
    time = sum(
        stats.size[0] / (stats.rate or 1.0) for stats in report.sample_stats["train"] if stats.size and stats.is_valid
    )
    chances = []
    for label in range(1, len(report.classes)):
        if images[label]:
            events = len(report.durations(label))
            present = float(images[label]) / total
            chances.append(min(present, 1 - math.exp(-events * crop_seconds / max(time, 1e-9))))
    return min(chances, default=1.0)


def choose_signal_events(plan: Plan, report: LintReport, rule: InputRule) -> None:
    """Predicted events much shorter than those of their class are removed: they are parts of others, or noise."""
    shortest = {}
    for label, entry in enumerate(report.classes[1:], 1):
        durations = report.durations(label)
        if rule.rate and len(durations) >= MIN_EVENTS:
            seconds = round(SHORTEST_EVENT * float(np.quantile(durations, 1 - LONG)), 3)
            if seconds * rule.rate > 1:  # an event of one time step is never shorter
                shortest[entry.name] = seconds
    if shortest:
        reason = f"seconds; {SHORTEST_EVENT:.0%} of the duration that 99% of a class's events have: shorter ones are not real"
        plan.set("min_duration", shortest, reason)


def choose_signal_loss(plan: Plan, report: LintReport) -> None:
    """Cross-entropy weights time steps alike, Dice classes."""
    counts = report.pixel_counts["train"][: len(report.classes)].astype(float)
    fraction = counts.min() / max(1.0, report.pixel_counts["train"][:IGNORE_INDEX].sum())
    plan.set("loss", "ce+dice", f"the rarest class has {fraction:.2%} of the time; dice weights all classes alike")
    plan.set("class_weights", "none", "dice has the same effect, without predicting rare classes too often")


def choose_signal_batch(plan: Plan, report: LintReport, machine: MachineProfile) -> None:
    """As many crops as make a step worth its start: signals are small."""
    devices = plan["devices"]
    wanted = BATCH_STEPS[machine.device] // plan["crop"][0]
    batch = max(2, min(MAX_BATCH, max(MIN_BATCH, wanted), report.image_counts["train"] // devices)) * devices
    plan.set("batch", batch, f"{batch * plan['crop'][0]:,} time steps of all crops together: a step is worth its start")
    plan.set("accumulate", 1, "the batch fits into memory")


def fits_in_memory(report: LintReport, rule: InputRule) -> bool:
    """Whether all recordings, at the rate of the training, stay in memory after they were read (`training/data/signals.py`)."""
    steps = sum(
        stats.size[0] * ((rule.rate or 1.0) / (stats.rate or rule.rate or 1.0))
        for split in report.sample_stats.values()
        for stats in split
        if stats.size
    )
    return bool(steps * (len(rule.channels) * np.dtype(rule.dtype).itemsize + 1) < MAX_RECENT_BYTES)


@dataclass(frozen=True)
class SampleCounts:
    """The numbers of signals or volumes of a report, as `choose_duration` needs them."""

    report: LintReport

    @property
    def num_train_images(self) -> int:
        """Of train."""
        return self.report.image_counts["train"]

    @property
    def num_val_images(self) -> int:
        """Of val."""
        return self.report.image_counts.get("val", 0)
