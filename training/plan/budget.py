"""Plans what depends on the machine: a batch that fits into memory, an encoder and a duration that fit the time."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from models.architectures import default_options
from models.errors import ConfigError
from models.spec import AXES, InputRule
from models.thread_count import ThreadCount
from training.engine.schedule import epochs_between_validations
from training.plan.fingerprint import DatasetFingerprint
from training.plan.profiling import (
    MAX_TIMED_SECONDS,
    MachineProfile,
    activation_bytes_per_image,
    measure_step_seconds,
    runnable_wait_seconds,
)
from training.plan.rules import DEFAULT_BATCH, ENCODER_LADDER, FIRST_RUNG, Plan

# Crops that fit into the time: from the first number a larger encoder pays, below the second a smaller one.
CROPS_FOR_LARGER_ENCODER, CROPS_FOR_SMALLER_ENCODER = 120_000, 4_000
DEFAULT_CROPS = 50_000  # to train on if no time is given, as in CamVid's best run
MIN_EPOCHS, MAX_EPOCHS = 10, 1000
MAX_WARMUP_STEPS = 200
MAX_MEMORY_FRACTION = 0.6  # of the free memory that a step may take
AUGMENT_SECONDS = 0.005  # seconds of a core to augment a crop
MIN_READ_SECONDS_TO_CACHE = 0.002  # seconds of a core to read an image, from which caching pays
DEFAULT_GPU_MINUTES = 20.0  # minutes that a GPU is planned for if none are given


class SplitCounts(Protocol):
    """The numbers of images, or signals, as a fingerprint has them."""

    @property
    def num_train_images(self) -> int:
        """Of train."""

    @property
    def num_val_images(self) -> int:
        """Of val."""


@dataclass
class StepProfiler:
    """Times training steps on this machine."""

    num_classes: int
    machine: MachineProfile
    read_seconds: float = 0.0  # of a core, per image
    cache_decoded: bool = False  # whether images are read only once
    start_time: float = field(default_factory=time.monotonic)  # when the minutes began to count
    busy_fraction: float = 0.0  # largest fraction of a timing during which other programs had the core
    rule: InputRule | None = None  # the network's input; None for photographs
    augment_seconds: float = AUGMENT_SECONDS  # of a core, per crop

    def __post_init__(self) -> None:
        self.thread_count = ThreadCount(self.machine.device == "cpu")

    @property
    def axes(self) -> str:
        """Of the samples: HW for images, T for signals."""
        return self.rule.axes if self.rule else "HW"

    def step_seconds(self, plan: Plan) -> float | None:
        """Seconds of one step of the plan so far, with reading; None if it does not fit into memory. Raises: ConfigError."""
        # Processes on a CPU share its memory and its cores; GPUs have their own.
        num_memories = plan["devices"] if self.machine.device == "cuda" else 1
        batch = plan["batch"] // num_memories
        needed = activation_bytes_per_image(plan.config(), self.num_classes, plan["crop"], self.rule) * batch
        if needed > MAX_MEMORY_FRACTION * self.machine.free_bytes:
            return None
        seconds = self._time_step(plan, batch)
        return None if seconds is None else float(plan["accumulate"] * self.add_read_time(seconds, plan["batch"]))

    def add_read_time(self, seconds: float, batch: int) -> float:
        """On a CPU, reading and steps share the cores; with a GPU, they overlap."""
        reading = (
            (self.augment_seconds + (0.0 if self.cache_decoded else self.read_seconds)) * batch / self.machine.cores
        )
        return seconds + reading if self.machine.device == "cpu" else max(seconds, reading)

    def remaining_seconds(self, plan: Plan) -> float | None:
        """Seconds that remain for steps; a tenth of the minutes is for validations and the start. None without minutes."""
        spent = time.monotonic() - self.start_time
        return max(1.0, 60 * plan["minutes"] - spent) * 0.9 if plan["minutes"] else None

    def samples_in_time(self, plan: Plan, seconds: float) -> float:
        """Samples that a training sees at `seconds` per step; infinite without minutes, or if measured times may not decide."""
        limit = self.remaining_seconds(plan)
        if limit is None or plan["deterministic"]:
            return math.inf
        return float(plan["batch"] * plan["accumulate"] * limit / seconds)

    def _time_step(self, plan: Plan, batch: int) -> float | None:
        """Seconds of a step in the plan's precision, which the first measurement chooses."""

        def seconds(precision: str) -> float | None:
            self.thread_count.update()
            start, waited = time.monotonic(), runnable_wait_seconds()
            found = measure_step_seconds(
                plan.config(), self.num_classes, plan["crop"], batch, self.machine.device, precision, self.rule
            )
            waited = runnable_wait_seconds() - waited
            self.busy_fraction = max(self.busy_fraction, waited / max(1e-9, time.monotonic() - start))
            return found

        if plan["precision"] != "auto":
            return seconds(plan["precision"])
        if not self.machine.bf16:
            plan.set("precision", "f32", f"{self.machine.name}: no bfloat16 instructions")
            return seconds("f32")
        half = seconds("bf16")
        if plan["deterministic"] or half is None or half > MAX_TIMED_SECONDS:
            too_slow = "f32 not benchmarked (time too short)"
            unstable = "not benchmarked: timings would make the plan differ between runs (deterministic)"
            plan.set("precision", "bf16", unstable if plan["deterministic"] else too_slow)
            return half
        if (full := seconds("f32")) is None:
            plan.set("precision", "bf16", "a step in f32 does not fit into memory")
            return half
        faster = "bf16" if half < 0.9 * full else "f32"
        plan.set("precision", faster, f"a step takes {half:.2f} s in bf16 and {full:.2f} s in f32")
        return half if faster == "bf16" else full


def choose_batch(plan: Plan, fingerprint: DatasetFingerprint, machine: MachineProfile) -> None:
    """As many images as batch norm needs for its statistics; `shrink_batch_to_fit` may halve it."""
    devices = plan["devices"]
    batch = max(2, min(DEFAULT_BATCH[machine.device], fingerprint.num_train_images // devices)) * devices
    plan.set("batch", batch, "enough for batch norm statistics; a larger batch means fewer steps")
    plan.set("accumulate", 1, "the batch fits into memory")


def choose_encoder(plan: Plan, profiler: StepProfiler) -> float:
    """Choose an encoder that fits the time and a batch that fits into memory. Returns: seconds per step. Raises: ConfigError."""
    if "encoder" in plan.settings or "encoder" not in default_options(plan["architecture"]):
        return shrink_batch_to_fit(plan, profiler)
    rung = FIRST_RUNG
    plan.set("encoder", ENCODER_LADDER[rung], "best accuracy for its training time in our benchmarks")
    seconds = shrink_batch_to_fit(plan, profiler)
    limit = profiler.remaining_seconds(plan) or (
        60 * DEFAULT_GPU_MINUTES if profiler.machine.device == "cuda" else None
    )
    if limit is None or plan["deterministic"]:
        return seconds
    step = plan["batch"] * plan["accumulate"]
    if step * limit / seconds < CROPS_FOR_SMALLER_ENCODER:
        plan.set(
            "encoder",
            ENCODER_LADDER[rung - 1],
            f"a larger one would train on only {step * limit / seconds:,.0f} crops in the time",
        )
        return shrink_batch_to_fit(plan, profiler)
    while rung + 1 < len(ENCODER_LADDER) and step * limit / seconds / 2 >= CROPS_FOR_LARGER_ENCODER:
        plan.set("encoder", ENCODER_LADDER[rung + 1], "")
        larger = profiler.step_seconds(plan)
        if larger is None:
            plan.set("encoder", ENCODER_LADDER[rung], "the largest that fits into memory")
            return seconds
        rung, seconds = rung + 1, larger
    crops = step * limit / seconds
    plan.set("encoder", ENCODER_LADDER[rung], f"trains on {crops:,.0f} crops in the time; a larger one on too few")
    return seconds


def shrink_batch_to_fit(plan: Plan, profiler: StepProfiler) -> float:
    """Halve the batch until a step fits into memory. Returns: seconds per step. Raises: ConfigError."""
    step, devices = plan["batch"] * plan["accumulate"], plan["devices"]
    free = f"{profiler.machine.free_bytes / 2**30:.1f} GiB"
    while (seconds := profiler.step_seconds(plan)) is None:
        least = 2 * devices
        if "batch" in plan.overrides or plan["batch"] <= least:
            size = " x ".join(map(str, reversed(plan["crop"])))
            raise ConfigError(
                f"A batch of {plan['batch']} {AXES[profiler.axes]} of {size} does not fit into the "
                f"{free} of free memory; set a smaller crop, side or batch."
            )
        batch = max(least, plan["batch"] // 2 // devices * devices)
        parts = math.ceil(step / batch)
        plan.set("batch", batch, f"fits into {free} of free memory")
        plan.set("accumulate", parts, f"keeps {batch * parts} {AXES[profiler.axes]} per step")
    return seconds


def choose_workers(plan: Plan, profiler: StepProfiler, seconds: float) -> None:
    """As many workers per device as keep up with the steps. `seconds`: of a step."""
    cores, step = profiler.machine.cores // plan["devices"], plan["batch"] * plan["accumulate"] / plan["devices"]
    most = max(1, cores if profiler.machine.device == "cpu" else cores - 1)
    load_seconds = profiler.augment_seconds + profiler.read_seconds  # even with a cache, the first epoch reads
    workers = min(most, max(1, math.ceil(1.5 * load_seconds * step / seconds)))  # 1.5: a slow image delays its batch
    plan.set("workers", workers, f"{step / seconds:.0f} crops per second, {1000 * load_seconds:.0f} ms of a core each")


def choose_caching(plan: Plan, num_bytes: int, fits: Callable[[int], bool], read_seconds: float) -> None:
    """Whether decoded images are cached, in `num_bytes` of disk. `fits`: whether the disk has that much space."""
    if read_seconds < MIN_READ_SECONDS_TO_CACHE:
        plan.set("cache_decoded", False, f"reading an image takes only {1000 * read_seconds:.1f} ms")
    elif not fits(num_bytes):
        plan.set("cache_decoded", False, f"the disk has no space for {num_bytes / 2**30:.1f} GiB of images")
    else:
        plan.set(
            "cache_decoded",
            True,
            f"reading an image takes {1000 * read_seconds:.0f} ms; the cache takes {num_bytes / 2**20:,.0f} MiB",
        )


def choose_duration(plan: Plan, fingerprint: SplitCounts, profiler: StepProfiler, seconds: float) -> None:
    """Epochs, warmup and how often to validate. `seconds`: of a step."""
    step = plan["batch"] * plan["accumulate"]
    steps_per_epoch = max(1, round(fingerprint.num_train_images / step))
    rate = f"{step / seconds:.0f} crops per second, measured here"
    limit, epochs = profiler.remaining_seconds(plan), float(plan["epochs"] or math.inf)
    if limit:
        epochs = min(epochs, limit / seconds / steps_per_epoch)
        plan.expected_epochs, plan.busy_fraction = epochs, profiler.busy_fraction
        plan.explain_override("minutes", f"about {epochs:,.{0 if epochs >= 10 else 1}f} epochs at {rate}")
    if not limit or "epochs" in plan.overrides:
        default = min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(DEFAULT_CROPS / step / steps_per_epoch)))
        epochs = epochs if epochs < math.inf else float(default)
        minutes = epochs * steps_per_epoch * seconds / 60
        why = f"{epochs * steps_per_epoch * step:,.0f} crops: about {minutes:,.0f} minutes at {rate}"
        plan.set("epochs", int(epochs), why)
        if "epochs" in plan.overrides:
            plan.explain_override("epochs", why)
    steps = epochs * steps_per_epoch
    plan.set("warmup", int(min(MAX_WARMUP_STEPS, steps / 20)), f"of about {steps:,.0f} steps")
    every = epochs_between_validations(epochs)
    times = max(1, int(epochs / every))
    how_often = "once" if times == 1 else f"{times} times"
    plan.set("validate_every", every, f"validates {how_often}, on {fingerprint.num_val_images} {AXES[profiler.axes]}")
    if plan["cache_decoded"] and epochs < 2:
        plan.set("cache_decoded", False, "no image is used twice")
