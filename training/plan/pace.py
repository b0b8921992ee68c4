"""What of a plan depends on the machine: a batch that fits, an encoder and a length that the time has use for."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from models.architectures import options_of
from models.errors import ConfigError
from training.data.kept import size_of
from training.plan.choose import BATCH, FIRST, LADDER, Plan, rule_of
from training.plan.survey import Survey
from training.plan.trial import Machine, bytes_a_picture, seconds_a_step

ENOUGH, TOO_FEW = 120_000, 4_000  # crops in the time given, from which a rung higher pays, and below which one lower
CROPS = 50_000  # to train on where no time is given: CamVid's best run saw as many
FEWEST_EPOCHS, MOST_EPOCHS = 10, 1000
WARMUP, VALIDATIONS = 200, 25
SPARE = 0.6  # of the free memory that a step may take
AUGMENT = 0.005  # seconds of a core to augment a crop
WORTH = 0.002  # seconds of a core to read a picture, from which keeping it pays
USUAL = 20.0  # minutes that a GPU is planned for where none are given


@dataclass
class Trials:
    """Steps tried on this machine, so that none is tried twice."""

    classes: int
    machine: Machine
    reading: float = 0.0  # seconds of a core for a picture
    kept: bool = False  # whether pictures are read once, and that is soon over

    def seconds(self, plan: Plan) -> float:
        """Of one step of the plan so far with its reading, its batch made smaller until the memory holds it.

        Raises: ConfigError.
        """
        machine, batch, devices = self.machine, plan["batch"], plan["devices"]
        while True:
            wanted = bytes_a_picture(plan.config(), self.classes, plan["crop"]) * plan["batch"] // devices
            found = self.tried(plan) if wanted <= SPARE * machine.memory else None
            if found is not None:
                return float(plan["accumulate"] * self.with_reading(found, plan["batch"]))
            if "batch" in plan.wishes or plan["batch"] <= 2 * devices:
                raise ConfigError(
                    f"A batch of {plan['batch']} pictures of {plan['crop'][1]} x {plan['crop'][0]} does not fit into the "
                    f"{machine.memory / 2**30:.1f} GiB that are free here; set a smaller crop, side or batch."
                )
            half = plan["batch"] // 2 // devices * devices
            plan.set("batch", half, f"what the {machine.memory / 2**30:.1f} GiB of free memory hold")
            plan.set("accumulate", math.ceil(batch / half), f"makes a step of {batch} pictures all the same")

    def with_reading(self, seconds: float, batch: int) -> float:
        """On a CPU reading takes turns with the steps on the same cores, beside a GPU it goes on at the same time."""
        reading = 0.0 if self.kept else self.reading * batch / self.machine.cores
        return seconds + reading if self.machine.device == "cpu" else max(seconds, reading)

    def tried(self, plan: Plan) -> float | None:
        """Seconds of a step in the number format of the plan, which the first trial chooses; None: too little memory."""

        def seconds(precision: str) -> float | None:
            return seconds_a_step(plan.config(), self.classes, plan["crop"], self.machine.device, precision)

        if plan["precision"] != "auto":
            return seconds(plan["precision"])
        if not self.machine.bf16:
            plan.set("precision", "f32", f"{self.machine.name} compute no bfloat16 by themselves")
            return seconds("f32")
        half, full = seconds("bf16"), seconds("f32")
        if half is None or full is None:
            return half
        better = "bf16" if half < 0.9 * full else "f32"
        plan.set("precision", better, f"a step takes {half:.2f} s in bf16 and {full:.2f} s in f32")
        return min(half, full)


def choose_batch(plan: Plan, survey: Survey, machine: Machine) -> None:
    """As many as batch norm needs for its statistics; the trial may halve it."""
    devices = plan["devices"]
    batch = max(2, min(BATCH[machine.device], survey.pictures // devices)) * devices
    plan.set("batch", batch, "enough for batch norm's statistics; more would be fewer steps")
    plan.set("accumulate", 1, "the memory holds a batch at once")


def choose_encoder(plan: Plan, trials: Trials) -> float:
    """The encoder that the time has use for. Returns: seconds a step."""
    if "encoder" in plan.choices or "encoder" not in options_of(plan["architecture"]):
        return trials.seconds(plan)
    limit = seconds_of(plan) or (60 * USUAL if trials.machine.device == "cuda" else None)
    rung = FIRST
    plan.set("encoder", LADDER[rung], "the best of its time in our trials")
    seconds = trials.seconds(plan)
    if limit is None:
        return seconds
    step = plan["batch"] * plan["accumulate"]
    if step * limit / seconds < TOO_FEW:
        rung -= 1
        plan.set("encoder", LADDER[rung], f"a larger one would see {step * limit / seconds:,.0f} crops in the time")
        return trials.seconds(plan)
    while rung + 1 < len(LADDER) and step * limit / seconds / 2 >= ENOUGH:
        rung += 1
        plan.set("encoder", LADDER[rung], "")
        seconds = trials.seconds(plan)
    seen = step * limit / seconds
    plan.set("encoder", LADDER[rung], f"sees {seen:,.0f} crops in the time; a larger one would learn less from fewer")
    return seconds


def choose_workers(plan: Plan, trials: Trials, seconds: float) -> None:
    """As many as read ahead of the steps. `seconds`: of a step."""
    cores, step = trials.machine.cores, plan["batch"] * plan["accumulate"]
    most = max(1, cores if trials.machine.device == "cpu" else cores - 1)
    reading = AUGMENT + (0.0 if trials.kept else trials.reading)
    workers = min(most, max(1, math.ceil(1.5 * reading * step / seconds)))  # a late one holds up a batch
    plan.set("workers", workers, f"{step / seconds:.0f} crops a second, each {1000 * reading:.0f} ms of a core")


def choose_keeping(plan: Plan, survey: Survey, room: Callable[[int], bool], reading: float) -> None:
    """Whether pictures are decoded once. `room`: whether the disk holds so many bytes."""
    wanted = survey.pictures * size_of([survey.size], rule_of(plan))
    if reading < WORTH:
        plan.set("keep", False, f"a picture is read in {1000 * reading:.1f} ms")
    elif not room(wanted):
        plan.set("keep", False, f"the disk has no room for {wanted / 2**30:.1f} GiB of pictures")
    else:
        plan.set(
            "keep", True, f"a picture is read in {1000 * reading:.0f} ms; kept, they take {wanted / 2**20:,.0f} MiB"
        )


def choose_length(plan: Plan, survey: Survey, seconds: float) -> None:
    """How long, how slow a start, how often a look. `seconds`: of a step."""
    step = plan["batch"] * plan["accumulate"]
    an_epoch = max(1, round(survey.pictures / step))
    rate = f"{step / seconds:.0f} crops a second, tried here"
    if limit := seconds_of(plan):
        epochs = max(1.0, limit / seconds / an_epoch)
        plan.explain("minutes", f"about {epochs:,.0f} epochs at {rate}")
    else:
        wanted = math.ceil(CROPS / step / an_epoch)
        epochs = float(plan["epochs"] or min(MOST_EPOCHS, max(FEWEST_EPOCHS, wanted)))
        minutes = epochs * an_epoch * seconds / 60
        why = f"{epochs * an_epoch * step:,.0f} crops: about {minutes:,.0f} minutes at {rate}"
        plan.set("epochs", int(epochs), why)
        if "epochs" in plan.wishes:
            plan.explain("epochs", why)
    steps = epochs * an_epoch
    warmup = int(min(WARMUP, steps / 20))
    plan.set("warmup", warmup, f"steps, of about {steps:,.0f}")
    every = max(1, round(epochs / VALIDATIONS))
    plan.set("validate_every", every, f"{max(1, int(epochs / every))} looks at {survey.held_out} pictures in all")


def seconds_of(plan: Plan) -> float | None:
    """What the minutes leave for steps: a tenth goes to validations and the start."""
    return 60 * plan["minutes"] * 0.9 if plan["minutes"] else None
