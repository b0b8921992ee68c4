"""What of a plan depends on the machine: a batch that fits, an encoder and a length that the time has use for."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from models.architectures import default_options
from models.errors import ConfigError
from training.plan.fingerprint import DatasetFingerprint
from training.plan.profiling import MAX_TIMED_SECONDS, MachineProfile, activation_bytes_per_image, measure_step_seconds
from training.plan.rules import DEFAULT_BATCH, ENCODER_LADDER, FIRST_RUNG, Plan

CROPS_FOR_LARGER_ENCODER, CROPS_FOR_SMALLER_ENCODER = (
    120_000,
    4_000,
)  # crops in the time given, from which a rung higher pays, and below which one lower
DEFAULT_CROPS = 50_000  # to train on where no time is given: CamVid's best run saw as many
MIN_EPOCHS, MAX_EPOCHS = 10, 1000
MAX_WARMUP_STEPS, NUM_VALIDATIONS = 200, 25
MAX_MEMORY_FRACTION = 0.6  # of the free memory that a step may take
AUGMENT_SECONDS = 0.005  # seconds of a core to augment a crop
MIN_READ_SECONDS_TO_CACHE = 0.002  # seconds of a core to read an image, from which keeping it pays
DEFAULT_GPU_MINUTES = 20.0  # minutes that a GPU is planned for where none are given


@dataclass
class StepProfiler:
    """Steps tried on this machine."""

    num_classes: int
    machine: MachineProfile
    read_seconds: float = 0.0  # seconds of a core for an image
    cache_decoded: bool = False  # whether images are read once
    start_time: float = field(default_factory=time.monotonic)  # when the minutes began to count

    def step_seconds(self, plan: Plan) -> float | None:
        """Of one step of the plan so far with its reading; None where the memory does not hold it. Raises: ConfigError."""
        # Processes on a CPU share its memory and its cores; GPUs have their own.
        share = plan["devices"] if self.machine.device == "cuda" else 1
        batch = plan["batch"] // share
        wanted = activation_bytes_per_image(plan.config(), self.num_classes, plan["crop"]) * batch
        found = self._time_step(plan, batch) if wanted <= MAX_MEMORY_FRACTION * self.machine.free_bytes else None
        return None if found is None else float(plan["accumulate"] * self.add_read_time(found, plan["batch"]))

    def add_read_time(self, seconds: float, batch: int) -> float:
        """On a CPU reading takes turns with the steps on the same cores, beside a GPU it goes on at the same time."""
        reading = (AUGMENT_SECONDS + (0.0 if self.cache_decoded else self.read_seconds)) * batch / self.machine.cores
        return seconds + reading if self.machine.device == "cpu" else max(seconds, reading)

    def remaining_seconds(self, plan: Plan) -> float | None:
        """Seconds that the minutes leave for steps: a tenth goes to validations and the start. None without minutes."""
        spent = time.monotonic() - self.start_time
        return max(1.0, 60 * plan["minutes"] - spent) * 0.9 if plan["minutes"] else None

    def _time_step(self, plan: Plan, batch: int) -> float | None:
        """Seconds of a step in the number format of the plan, which the first trial chooses."""

        def seconds(precision: str) -> float | None:
            config = plan.config()
            return measure_step_seconds(config, self.num_classes, plan["crop"], batch, self.machine.device, precision)

        if plan["precision"] != "auto":
            return seconds(plan["precision"])
        if not self.machine.bf16:
            plan.set("precision", "f32", f"{self.machine.name}: no bfloat16 of its own")
            return seconds("f32")
        half = seconds("bf16")
        if plan["deterministic"] or half is None or half > MAX_TIMED_SECONDS:
            why = (
                "not tried against f32: the clock may say otherwise next time"
                if plan["deterministic"]
                else "f32 was not tried"
            )
            plan.set("precision", "bf16", why)
            return half
        if (full := seconds("f32")) is None:
            plan.set("precision", "bf16", "a step in f32 does not fit into the memory")
            return half
        better = "bf16" if half < 0.9 * full else "f32"
        plan.set("precision", better, f"a step takes {half:.2f} s in bf16 and {full:.2f} s in f32")
        return half if better == "bf16" else full


def choose_batch(plan: Plan, survey: DatasetFingerprint, machine: MachineProfile) -> None:
    """As many as batch norm needs for its statistics; the trial may halve it."""
    devices = plan["devices"]
    batch = max(2, min(DEFAULT_BATCH[machine.device], survey.num_train_images // devices)) * devices
    plan.set("batch", batch, "enough for batch norm's statistics; more would be fewer steps")
    plan.set("accumulate", 1, "the memory holds a batch at once")


def choose_encoder(plan: Plan, trials: StepProfiler) -> float:
    """The encoder that the time has use for, and a batch that the memory holds. Returns: seconds a step. Raises: ConfigError."""
    if "encoder" in plan.settings or "encoder" not in default_options(plan["architecture"]):
        return shrink_batch_to_fit(plan, trials)
    rung = FIRST_RUNG
    plan.set("encoder", ENCODER_LADDER[rung], "the best of its time in our trials")
    seconds = shrink_batch_to_fit(plan, trials)
    limit = trials.remaining_seconds(plan) or (60 * DEFAULT_GPU_MINUTES if trials.machine.device == "cuda" else None)
    if limit is None or plan["deterministic"]:
        return seconds
    step = plan["batch"] * plan["accumulate"]
    if step * limit / seconds < CROPS_FOR_SMALLER_ENCODER:
        plan.set(
            "encoder",
            ENCODER_LADDER[rung - 1],
            f"a larger one would see {step * limit / seconds:,.0f} crops in the time",
        )
        return shrink_batch_to_fit(plan, trials)
    while rung + 1 < len(ENCODER_LADDER) and step * limit / seconds / 2 >= CROPS_FOR_LARGER_ENCODER:
        plan.set("encoder", ENCODER_LADDER[rung + 1], "")
        larger = trials.step_seconds(plan)
        if larger is None:
            plan.set("encoder", ENCODER_LADDER[rung], "the largest that the memory holds")
            return seconds
        rung, seconds = rung + 1, larger
    seen = step * limit / seconds
    plan.set(
        "encoder", ENCODER_LADDER[rung], f"sees {seen:,.0f} crops in the time; a larger one would learn less from fewer"
    )
    return seconds


def shrink_batch_to_fit(plan: Plan, trials: StepProfiler) -> float:
    """Seconds of a step, its batch halved until the memory holds it. Raises: ConfigError."""
    step, devices, free = (
        plan["batch"] * plan["accumulate"],
        plan["devices"],
        f"{trials.machine.free_bytes / 2**30:.1f} GiB",
    )
    while (seconds := trials.step_seconds(plan)) is None:
        least = 2 * devices
        if "batch" in plan.overrides or plan["batch"] <= least:
            raise ConfigError(
                f"A batch of {plan['batch']} images of {plan['crop'][1]} x {plan['crop'][0]} does not fit into the "
                f"{free} that are free here; set a smaller crop, side or batch."
            )
        batch = max(least, plan["batch"] // 2 // devices * devices)
        parts = math.ceil(step / batch)
        plan.set("batch", batch, f"what the {free} of free memory hold")
        plan.set("accumulate", parts, f"makes a step of {batch * parts} images all the same")
    return seconds


def choose_workers(plan: Plan, trials: StepProfiler, seconds: float) -> None:
    """As many as read ahead of the steps, for each device. `seconds`: of a step."""
    cores, step = trials.machine.cores // plan["devices"], plan["batch"] * plan["accumulate"] / plan["devices"]
    most = max(1, cores if trials.machine.device == "cpu" else cores - 1)
    reading = AUGMENT_SECONDS + trials.read_seconds  # also of what is kept: the first time it must be read
    workers = min(most, max(1, math.ceil(1.5 * reading * step / seconds)))  # a late one holds up a batch
    plan.set("workers", workers, f"{step / seconds:.0f} crops a second, each {1000 * reading:.0f} ms of a core")


def choose_caching(plan: Plan, wanted: int, room: Callable[[int], bool], reading: float) -> None:
    """Whether images are decoded once, for `wanted` bytes of disk. `room`: whether the disk holds so many."""
    if reading < MIN_READ_SECONDS_TO_CACHE:
        plan.set("cache_decoded", False, f"an image is read in {1000 * reading:.1f} ms")
    elif not room(wanted):
        plan.set("cache_decoded", False, f"the disk has no room for {wanted / 2**30:.1f} GiB of images")
    else:
        why = f"an image is read in {1000 * reading:.0f} ms; kept, they take {wanted / 2**20:,.0f} MiB"
        plan.set("cache_decoded", True, why)


def choose_duration(plan: Plan, survey: DatasetFingerprint, trials: StepProfiler, seconds: float) -> None:
    """How long, how slow a start, how often a look. `seconds`: of a step."""
    step = plan["batch"] * plan["accumulate"]
    an_epoch = max(1, round(survey.num_train_images / step))
    rate = f"{step / seconds:.0f} crops a second, tried here"
    limit, epochs = trials.remaining_seconds(plan), float(plan["epochs"] or math.inf)
    if limit:
        epochs = min(epochs, limit / seconds / an_epoch)
        plan.explain_override("minutes", f"about {epochs:,.{0 if epochs >= 10 else 1}f} epochs at {rate}")
    if not limit or "epochs" in plan.overrides:
        wanted = min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(DEFAULT_CROPS / step / an_epoch)))
        epochs = epochs if epochs < math.inf else float(wanted)
        minutes = epochs * an_epoch * seconds / 60
        why = f"{epochs * an_epoch * step:,.0f} crops: about {minutes:,.0f} minutes at {rate}"
        plan.set("epochs", int(epochs), why)
        if "epochs" in plan.overrides:
            plan.explain_override("epochs", why)
    steps = epochs * an_epoch
    plan.set("warmup", int(min(MAX_WARMUP_STEPS, steps / 20)), f"steps, of about {steps:,.0f}")
    every = max(1, round(epochs / NUM_VALIDATIONS))
    looks = max(1, int(epochs / every))
    plan.set("validate_every", every, f"{looks} look{'s' * (looks > 1)} at {survey.num_val_images} images in all")
    if plan["cache_decoded"] and epochs < 2:
        plan.set("cache_decoded", False, "no image comes twice")
