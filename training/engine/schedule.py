"""How long a training lasts, how far it is, and what all processes must know of it alike."""

import functools
import time
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric

from training.config import TrainConfig
from training.engine.checkpoint import State

EPOCHS = 40  # where neither epochs nor minutes are given
YOUNG = 5  # steps of a start before their time says anything: workers and kernels get going


class Span:
    """How long a training lasts, in steps or minutes, and where in it a step lies."""

    def __init__(self, pictures: int, held_out: int, config: TrainConfig) -> None:
        """`pictures` to train on, `held_out` to validate on."""
        self.steps_per_epoch = max(1, round(pictures / (config.batch * config.accumulate)))
        epochs = config.epochs or (None if config.minutes else EPOCHS)
        self.steps = epochs and epochs * self.steps_per_epoch
        self.seconds = config.minutes and 60 * config.minutes
        self.validate_every = config.validate_every * self.steps_per_epoch
        # In steps: a validation is worth half of as many pictures, for nothing is learned from them.
        self.validation = held_out / (config.batch * config.accumulate) / 2

    def progress(self, step: int, seconds: float, reserve: float) -> float:
        """The share that is done, 0..1: a limit in minutes shortens the schedule, so that it still ends.

        reserve: seconds that the last validation will take; they are counted up to half of the limit.
        """
        by_steps = step / self.steps if self.steps else 0.0
        if not self.seconds:
            return min(1.0, by_steps)
        return min(1.0, max(by_steps, seconds / (self.seconds - min(reserve, self.seconds / 2))))

    def epoch(self, step: int) -> float:
        """Passes over the pictures that are done."""
        return step / self.steps_per_epoch


class Pace(NamedTuple):
    """What all processes must know alike after a step: learning rates by clocks of their own would drift apart."""

    progress: float  # share of the training that is done, 0..1
    hurry: bool  # whether another validation before the last one would overrun the limit
    stopped: bool  # whether any process was asked to stop: they leave together, or wait for each other for ever


class StepClock:
    """How long a step of this start takes."""

    def __init__(self) -> None:
        self.ticks = 0
        self.first = self.last = 0.0

    def tick(self) -> None:
        """A step is done."""
        self.ticks, self.last = self.ticks + 1, time.monotonic()
        self.first = self.first or self.last

    def seconds(self) -> float:
        """The mean; 0 while it says nothing yet."""
        return (self.last - self.first) / (self.ticks - 1) if self.ticks > YOUNG else 0.0


def agree(fabric: Fabric, span: Span, state: State, clock: StepClock, stopped: bool) -> Pace:
    """The first process's clock, and any process's stop, for all. The group is of CPUs, so that no GPU waits."""
    reserve = span.validation * clock.seconds() if state.reserve is None else state.reserve
    seconds = state.seconds()
    progress = span.progress(state.step, seconds, reserve)
    hurry = bool(span.seconds) and seconds + 2 * reserve > float(span.seconds or 0)
    if fabric.world_size > 1:
        mine = [progress, float(hurry)] if fabric.is_global_zero else [0.0, 0.0]
        told = torch.tensor([*mine, float(stopped)], dtype=torch.float64)
        torch.distributed.all_reduce(told, group=cpu_group())
        progress, hurry, stopped = told[0].item(), bool(told[1]), bool(told[2])
    return Pace(progress, hurry, stopped)


@functools.cache
def cpu_group() -> Any:
    """Every process, by gloo."""
    return torch.distributed.new_group(backend="gloo")
